//! What peers are answered.

use super::*;
use calloop::EventLoop;
use calloop::channel::{Event, channel};
use std::io::BufRead;

/// Answers everything that comes until `clients` have ended.
pub(super) fn with_engine<T: Send>(listener: Listener, clients: impl FnOnce() -> T + Send) -> T {
    let mut events = EventLoop::<()>::try_new().unwrap();
    let (sender, asks) = channel::<Ask>();
    events
        .handle()
        .insert_source(asks, |ask, (), ()| {
            if let Event::Msg(Ask { request, reply }) = ask {
                let answer = match request {
                    Request::Metrics => Reply::Metrics("a 1\n".into()),
                    _ => Reply::Done(Default::default()),
                };
                let _ = reply.send(answer);
            }
        })
        .unwrap();
    std::thread::scope(|scope| {
        let clients = scope.spawn(clients);
        while !clients.is_finished() {
            listener.accept(&sender);
            events.dispatch(Some(Duration::from_millis(2)), &mut ()).unwrap();
        }
        clients.join().unwrap()
    })
}

pub(super) fn exchange(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let _ = stream.write_all(request);
    let mut line = String::new();
    let _ = io::BufReader::new(stream).read_line(&mut line);
    line
}

#[test]
fn one_line_asks_and_one_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = Listener::control(Some(&path)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let replies = with_engine(listener, || {
        let long = vec![b' '; REQUEST_MAX + 8192];
        [b"{\"command\":\"reload\"}\n".as_slice(), b"rubbish\n", b"{}\n", &long].map(|r| exchange(&path, r))
    });
    assert!(replies[0].starts_with("{\"done\":{\"mounts\":0,"), "{}", replies[0]);
    assert!(replies[1].starts_with("{\"error\":\"not a request: "), "{}", replies[1]);
    assert!(replies[2].contains("command"), "{}", replies[2]);
    assert_eq!(replies[3], "");
    // the name has gone with the listener
    assert!(!path.exists());
}

#[test]
fn a_socket_that_was_left_is_used_again_and_one_in_use_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    drop(UnixListener::bind(&path).unwrap());
    let listener = Listener::control(Some(&path)).unwrap();
    assert!(matches!(Listener::control(Some(&path)), Err(ListenError::InUse(_))));
    drop(listener);
    fs::write(&path, "").unwrap();
    // no socket: nothing of ours is removed
    assert!(Listener::control(Some(&path)).is_err() && path.exists());
}

#[test]
fn metrics_are_told_over_http() {
    let listener = Listener::metrics(&MetricsAt::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
    let Socket::Tcp(tcp) = &listener.socket else { unreachable!() };
    let address = tcp.local_addr().unwrap();
    let replies = with_engine(listener, move || {
        ["GET /metrics", "GET /", "GET /x", "POST /metrics"].map(|line| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    });
    for (reply, status) in replies.iter().zip(["200", "200", "404", "405"]) {
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
    }
    assert!(replies[0].ends_with("Content-Length: 4\r\nConnection: close\r\n\r\na 1\n"), "{}", replies[0]);
}

#[test]
fn metrics_stay_on_this_machine() {
    let parse = |text: &str| text.parse::<MetricsAt>();
    assert_eq!(parse("unix:/run/x"), Ok(MetricsAt::Unix("/run/x".into())));
    assert_eq!(parse("[::1]:9"), Ok(MetricsAt::Tcp("[::1]:9".parse().unwrap())));
    for text in ["0.0.0.0:1", "192.0.2.1:80", "[::]:1", "unix:x", "9300", "localhost:1", ""] {
        assert!(parse(text).is_err(), "{text}");
    }
}
