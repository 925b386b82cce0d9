//! ONC RPC calls, each with a limit: which directories a server exports, where its services are, whether it answers.
//!
//! Messages are those of RFC 5531, values are encoded as RFC 4506 says, ports come from rpcbind (RFC 1833).

mod xdr;

pub use xdr::{Malformed, Reader, put_opaque, put_u32};

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Which service: a program number with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its number.
    pub number: u32,
    /// Its version.
    pub version: u32,
}

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over a connection.
    Tcp,
    /// As datagrams, sent again every second until the answer comes.
    Udp,
}

/// A call without a result.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The server cannot be reached.
    #[error("{0}")]
    Network(#[from] io::Error),
    /// No answer in time.
    #[error("no answer in time")]
    TimeLimit,
    /// The answer is not RPC, or too long.
    #[error("the answer makes no sense: {0}")]
    Malformed(#[from] Malformed),
    /// The server does not have the program, the version or the procedure, or does not know the caller.
    #[error("the server refused the call")]
    Refused,
    /// rpcbind does not know the service.
    #[error("the service is not registered with the server's rpcbind")]
    NotRegistered,
}

/// Where rpcbind listens.
const RPCBIND_PORT: u16 = 111;
/// Its program number.
const RPCBIND: u32 = 100_000;
/// Answers longer than this are none.
const ANSWER_MAX: usize = 4 << 20;
/// A datagram without an answer is sent again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// Call a procedure; its result, still encoded.
pub fn call(
    server: SocketAddr,
    transport: Transport,
    program: Program,
    procedure: u32,
    arguments: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, RpcError> {
    let id = next_id();
    let message = request(id, program, procedure, arguments);
    let answer = match transport {
        Transport::Tcp => over_tcp(server, &message, deadline)?,
        Transport::Udp => over_udp(server, id, &message, deadline)?,
    };
    result(id, &answer).map(<[u8]>::to_vec)
}

/// The port of a service on a host, from the rpcbind there.
pub fn port(
    host: IpAddr,
    transport: Transport,
    program: Program,
    deadline: Instant,
) -> Result<u16, RpcError> {
    let mut arguments = Vec::new();
    put_u32(&mut arguments, program.number);
    put_u32(&mut arguments, program.version);
    let (version, found) = match host {
        // Version 2 is what every server has, but it knows IPv4 only.
        IpAddr::V4(_) => {
            put_u32(&mut arguments, if transport == Transport::Tcp { 6 } else { 17 });
            put_u32(&mut arguments, 0);
            (2, call_rpcbind(host, transport, 2, &arguments, deadline)?)
        }
        IpAddr::V6(_) => {
            let netid: &[u8] = if transport == Transport::Tcp { b"tcp6" } else { b"udp6" };
            for text in [netid, b"", b""] {
                put_opaque(&mut arguments, text);
            }
            (4, call_rpcbind(host, transport, 4, &arguments, deadline)?)
        }
    };
    let mut found = Reader::new(&found);
    let port = if version == 2 { found.u32()?.try_into().ok() } else { universal_port(found.opaque()?) };
    port.filter(|port| *port != 0).ok_or(RpcError::NotRegistered)
}

fn call_rpcbind(
    host: IpAddr,
    transport: Transport,
    version: u32,
    arguments: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, RpcError> {
    /// Both versions number it the same.
    const GET: u32 = 3;
    let program = Program { number: RPCBIND, version };
    call(SocketAddr::new(host, RPCBIND_PORT), transport, program, GET, arguments, deadline)
}

/// The port in a universal address, `ADDRESS.HIGH.LOW`; `None` for the empty one.
fn universal_port(address: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(address).ok()?;
    let mut parts = text.rsplitn(3, '.');
    let (low, high) = (parts.next()?.parse::<u8>().ok()?, parts.next()?.parse::<u8>().ok()?);
    Some(u16::from_be_bytes([high, low]))
}

/// Differs from call to call, so that a late answer is not taken for another call's.
fn next_id() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u32
}

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
/// No credentials: what is asked here is for everybody.
const AUTH_NONE: u32 = 0;

fn request(id: u32, program: Program, procedure: u32, arguments: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(40 + arguments.len());
    let Program { number, version } = program;
    // Credentials and verifier: a flavour and an empty body each.
    for word in [id, CALL, RPC_VERSION, number, version, procedure, AUTH_NONE, 0, AUTH_NONE, 0] {
        put_u32(&mut message, word);
    }
    message.extend_from_slice(arguments);
    message
}

/// What follows the header of an answer.
fn result(id: u32, answer: &[u8]) -> Result<&[u8], RpcError> {
    let mut reader = Reader::new(answer);
    if reader.u32()? != id || reader.u32()? != REPLY {
        return Err(Malformed.into());
    }
    let accepted = reader.u32()? == 0;
    if accepted {
        let _flavour = reader.u32()?;
        let _verifier = reader.opaque()?;
    }
    if !accepted || reader.u32()? != 0 {
        return Err(RpcError::Refused);
    }
    Ok(reader.rest())
}

/// What is left of the time, for a call that takes it.
fn left(deadline: Instant) -> Result<Duration, RpcError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(RpcError::TimeLimit) } else { Ok(left) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn failed(error: io::Error) -> RpcError {
    if is_timeout(&error) { RpcError::TimeLimit } else { error.into() }
}

fn over_tcp(server: SocketAddr, message: &[u8], deadline: Instant) -> Result<Vec<u8>, RpcError> {
    /// The bit of a fragment's length that marks the last one.
    const LAST: u32 = 1 << 31;
    let mut stream = TcpStream::connect_timeout(&server, left(deadline)?).map_err(failed)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let length = u32::try_from(message.len()).map_err(|_| Malformed)?;
    let framed = [&(LAST | length).to_be_bytes(), message].concat();
    stream.write_all(&framed).map_err(failed)?;

    let mut answer = Vec::new();
    loop {
        let mut header = [0; 4];
        fill(&mut stream, &mut header, deadline)?;
        let header = u32::from_be_bytes(header);
        let start = answer.len();
        let end = start + (header & !LAST) as usize;
        if end > ANSWER_MAX {
            return Err(Malformed.into());
        }
        answer.resize(end, 0);
        fill(&mut stream, &mut answer[start..], deadline)?;
        if header & LAST != 0 {
            return Ok(answer);
        }
    }
}

/// As read_exact, but a server that writes a byte now and then does not get more time.
fn fill(stream: &mut TcpStream, mut buffer: &mut [u8], deadline: Instant) -> Result<(), RpcError> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(length) => buffer = &mut buffer[length..],
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn over_udp(server: SocketAddr, id: u32, message: &[u8], deadline: Instant) -> Result<Vec<u8>, RpcError> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    let mut answer = vec![0; 1 << 16];
    loop {
        socket.send(message)?;
        let again = Instant::now() + AGAIN.min(left(deadline)?);
        while let Ok(wait) = left(again) {
            socket.set_read_timeout(Some(wait))?;
            match socket.recv(&mut answer) {
                Ok(length) if answer[..length].starts_with(&id.to_be_bytes()) => {
                    answer.truncate(length);
                    return Ok(answer);
                }
                // Not ours.
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
