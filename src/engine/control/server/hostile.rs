//! Peers that mean harm, or are broken. However they behave, the next one is answered.

use super::tests::{exchange, with_engine};
use super::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::IoSlice;
use std::mem::MaybeUninit;

const STATUS: &[u8] = b"{\"command\":\"reload\"}\n";

fn is_answered(path: &Path) -> bool {
    exchange(path, STATUS).starts_with("{\"done\":")
}

/// Not at once, perhaps: as many as may be are served already.
fn is_answered_in_the_end(path: &Path) -> bool {
    let begin = Instant::now();
    while !is_answered(path) {
        if begin.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A socket in a directory that everybody may enter.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("sock");
    (dir, path)
}

/// How long what happens at once may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Until the other side has closed, without an answer.
fn is_closed(stream: &mut UnixStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn somebody_who_is_not_root() {
    let (_dir, path) = place();
    let listener = Listener::control(Some(&path)).unwrap();
    let other = |path: PathBuf| {
        // Of this thread only.
        let nobody = rustix::process::Uid::from_raw(65534);
        std::thread::spawn(move || {
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            UnixStream::connect(&path).map(|mut stream| {
                let _ = stream.write_all(STATUS);
                is_closed(&mut stream, PATIENCE)
            })
        })
        .join()
        .unwrap()
    };
    with_engine(listener, || {
        let refused = other(path.clone());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
        // Even where the socket's mode lets everybody in.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(other(path.clone()).unwrap());
        assert!(is_answered(&path));
    });
}

#[test]
fn half_a_line_for_ever() {
    let (_dir, path) = place();
    let listener = Listener::control(Some(&path)).unwrap();
    with_engine(listener, || {
        let begin = Instant::now();
        let mut half = UnixStream::connect(&path).unwrap();
        half.write_all(b"{\"command\":").unwrap();
        let mut slow = half.try_clone().unwrap();
        assert!(is_answered(&path));
        assert!(begin.elapsed() < LINE_LIMIT, "the others waited");
        // A byte now and then does not give it more time.
        let drip = std::thread::spawn(move || {
            while slow.write_all(b" ").is_ok() && begin.elapsed() < 4 * LINE_LIMIT {
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        assert!(is_closed(&mut half, PATIENCE));
        assert!(begin.elapsed() < 3 * LINE_LIMIT);
        drip.join().unwrap();
    });
}

#[test]
fn ten_thousand_connections() {
    let (_dir, path) = place();
    let listener = Listener::control(Some(&path)).unwrap();
    with_engine(listener, || {
        let mut held: Vec<UnixStream> = Vec::new();
        for n in 0..10_000 {
            let stream = UnixStream::connect(&path).unwrap();
            if n < 200 {
                held.push(stream);
            }
        }
        let closed = held.iter_mut().skip(CONNECTIONS).all(|stream| {
            let _ = stream.write_all(STATUS);
            is_closed(stream, PATIENCE)
        });
        assert!(closed, "more than {CONNECTIONS} are served at once");
        drop(held);
        assert!(is_answered_in_the_end(&path));
    });
}

#[test]
fn a_line_of_a_hundred_megabytes() {
    let (_dir, path) = place();
    let listener = Listener::control(Some(&path)).unwrap();
    with_engine(listener, || {
        let mut stream = UnixStream::connect(&path).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        let taken = (0..100).take_while(|_| stream.write_all(&chunk).is_ok()).count();
        assert!(taken < 2, "{taken} MB were taken");
        assert!(is_answered(&path));
    });
}

#[test]
fn json_that_is_nested_without_end() {
    let (_dir, path) = place();
    let listener = Listener::control(Some(&path)).unwrap();
    let line = ["[".repeat(REQUEST_MAX - 8), "\n".into()].concat();
    let reply = with_engine(listener, || exchange(&path, line.as_bytes()));
    assert!(reply.starts_with("{\"error\":\"not a request: "), "{reply}");
}

#[test]
fn one_that_closes_while_it_is_answered() {
    let (_dir, path) = place();
    let listener = Listener::control(Some(&path)).unwrap();
    with_engine(listener, || {
        for _ in 0..100 {
            let mut stream = UnixStream::connect(&path).unwrap();
            let _ = stream.write_all(STATUS);
        }
        assert!(is_answered_in_the_end(&path));
    });
}

/// The answer is larger than what fits into the socket.
#[test]
fn one_that_does_not_take_its_answer() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let begin = Instant::now();
    let sender = std::thread::spawn(move || Stream::Unix(theirs).write(&vec![b'x'; 64 << 20]));
    // A byte now and then does not give it more time.
    let mut byte = [0];
    while !sender.is_finished() && begin.elapsed() < 4 * LINE_LIMIT {
        std::thread::sleep(Duration::from_millis(300));
        ours.read_exact(&mut byte).unwrap();
    }
    assert!(sender.join().unwrap().is_err());
    assert!(begin.elapsed() < 3 * LINE_LIMIT, "{:?}", begin.elapsed());
}

#[test]
fn descriptors_that_are_sent_along() {
    let (_dir, path) = place();
    let listener = Listener::control(Some(&path)).unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    with_engine(listener, || {
        let mut stream = UnixStream::connect(&path).unwrap();
        let fds = [write.as_fd(); 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(10))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(&stream, &[IoSlice::new(STATUS)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(&mut stream), &mut line).unwrap();
        assert!(line.starts_with("{\"done\":"), "{line}");
    });
    // Nobody has a copy.
    drop(write);
    assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
}
