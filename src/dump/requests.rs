//! Requests in flight: packets that the master has not read yet, and tasks that wait.

use crate::discover::facts::Waiter;
use crate::image::checkpoint::InFlight;
use crate::sys::Errno;
use crate::sys::packet::{Kind, Packet, packet_pipe, read_packet};
use crate::sys::process::copy_fd;
use rustix::pipe::{SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, tee};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// The packets in the pipe that process `pid` reads by its descriptor `fd`. They stay there: tee(2) copies them. What is no
/// protocol 5 packet is left out. Errors are those of [`copy_fd`].
pub fn unread(pid: i32, fd: RawFd) -> Result<Vec<Packet>, Errno> {
    unread_in(copy_fd(pid, fd)?.as_fd())
}

fn unread_in(pipe: BorrowedFd<'_>) -> Result<Vec<Packet>, Errno> {
    let size = fcntl_getpipe_size(pipe)?;
    let copy = packet_pipe()?;
    // where that is refused, the first packets fit all the same
    let _ = fcntl_setpipe_size(&copy.write, size);
    match tee(pipe, &copy.write, size, SpliceFlags::NONBLOCK) {
        Ok(_) => {}
        // empty
        Err(Errno::AGAIN) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    }
    drop(copy.write);
    let mut packets = Vec::new();
    loop {
        use crate::sys::packet::PacketError::{HangUp, Read};
        match read_packet(copy.read.as_fd()) {
            Ok(packet) => packets.extend(packet),
            Err(HangUp) => return Ok(packets),
            Err(Read(errno)) => return Err(errno),
            Err(_) => {}
        }
    }
}

/// What is in flight for one mount, given the unread packets for it and its waiters.
///
/// Packet and waiter are matched by the task's number, which the packet gives in the owner's pid namespace; what does not match
/// is listed by itself. Requests to expire are the master's own affair.
pub fn in_flight(packets: &[Packet], waiters: &[Waiter]) -> Vec<InFlight> {
    let visitors = || waiters.iter().filter(|waiter| !waiter.expiring);
    let asked_by = |packet: &Packet, waiter: &Waiter| i64::from(packet.pid) == i64::from(waiter.tid);
    let missing = |packet: &&Packet| matches!(packet.kind, Kind::MissingDirect | Kind::MissingIndirect);
    let missing: Vec<_> = packets.iter().filter(missing).collect();
    let mut requests: Vec<_> = missing
        .iter()
        .map(|packet| InFlight {
            packet: Some((packet.token, packet.name.clone())),
            waiter: visitors().find(|waiter| asked_by(packet, waiter)).cloned(),
            was_stopped: false,
        })
        .collect();
    let others = visitors().filter(|waiter| !missing.iter().any(|packet| asked_by(packet, waiter)));
    requests.extend(others.cloned().map(waiting));
    requests
}

fn waiting(waiter: Waiter) -> InFlight {
    InFlight { packet: None, waiter: Some(waiter), was_stopped: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{DevNum, control::Token, process::ProcessId};

    fn packet(kind: Kind, token: u32, pid: u32) -> Packet {
        let dev = DevNum::anonymous(40);
        Packet { kind, token: Token(token), dev, ino: 1, uid: 0, gid: 0, pid, tgid: pid, name: b"key".into() }
    }

    fn waiter(tid: i32, expiring: bool) -> Waiter {
        Waiter { tid, process: ProcessId { pid: tid, start_time: 1 }, comm: "ls".into(), expiring }
    }

    #[test]
    fn packets_and_waiters_are_matched() {
        let packets = [
            packet(Kind::MissingIndirect, 1, 10),
            packet(Kind::ExpireIndirect, 2, 11),
            packet(Kind::MissingDirect, 3, 12),
        ];
        let waiters = [waiter(10, false), waiter(11, true), waiter(13, false)];
        let found: Vec<_> = in_flight(&packets, &waiters)
            .into_iter()
            .map(|one| (one.packet.map(|(token, _)| token.0), one.waiter.map(|waiter| waiter.tid)))
            .collect();
        assert_eq!(found, [(Some(1), Some(10)), (Some(3), None), (None, Some(13))]);
    }

    #[test]
    fn packets_are_seen_and_stay() -> Result<(), Box<dyn std::error::Error>> {
        let pipe = packet_pipe()?;
        assert_eq!(unread_in(pipe.read.as_fd())?, []);
        for token in 1..=20u32 {
            let mut bytes = [0; crate::sys::packet::V5_SIZE];
            bytes[0] = 5;
            bytes[4] = 3;
            bytes[8..12].copy_from_slice(&token.to_ne_bytes());
            rustix::io::write(&pipe.write, &bytes)?;
        }
        for _ in 0..2 {
            let tokens: Vec<_> = unread_in(pipe.read.as_fd())?.iter().map(|packet| packet.token.0).collect();
            assert_eq!(tokens, (1..=20).collect::<Vec<_>>());
        }
        assert_eq!(read_packet(pipe.read.as_fd())?.map(|packet| packet.token), Some(Token(1)));
        Ok(())
    }
}
