//! Against servers of our own on the loopback network.

use super::*;
use rustix::net::{AddressFamily, SocketType};
use std::net::TcpListener;

const ECHO: Program = Program { number: 400_001, version: 1 };

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// The answer to a request: what `status` says, then the arguments.
fn reply(request: &[u8], status: u32) -> Vec<u8> {
    let mut answer = request[..4].to_vec();
    for word in [REPLY, 0, AUTH_NONE, 0, status] {
        put_u32(&mut answer, word);
    }
    answer.extend_from_slice(&request[40..]);
    answer
}

/// A server for one call over TCP, which cuts its answer into fragments.
fn tcp_server(status: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        let mut request = vec![0; (u32::from_be_bytes(header) & 0x7fff_ffff) as usize];
        stream.read_exact(&mut request).unwrap();
        let answer = reply(&request, status);
        let (first, last) = answer.split_at(10);
        stream.write_all(&(first.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(first).unwrap();
        stream.write_all(&(0x8000_0000 | last.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(last).unwrap();
    });
    address
}

#[test]
fn a_result_over_tcp() {
    let answer = call(tcp_server(0), Transport::Tcp, ECHO, 1, b"abcd", soon());
    assert_eq!(answer.unwrap(), b"abcd");
}

#[test]
fn a_call_that_is_refused() {
    let answer = call(tcp_server(1), Transport::Tcp, ECHO, 1, b"", soon());
    assert!(matches!(answer, Err(RpcError::Refused)), "{answer:?}");
}

#[test]
fn a_datagram_that_is_lost_is_sent_again() {
    let server = UdpSocket::bind("[::1]:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut request = [0; 1024];
        server.recv_from(&mut request).unwrap();
        let (length, from) = server.recv_from(&mut request).unwrap();
        server.send_to(b"not an answer", from).unwrap();
        server.send_to(&reply(&request[..length], 0), from).unwrap();
    });
    let answer = call(address, Transport::Udp, ECHO, 1, b"12345678", soon());
    assert_eq!(answer.unwrap(), b"12345678");
}

#[test]
fn a_silent_server_takes_no_more_than_the_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let both =
        [(listener.local_addr().unwrap(), Transport::Tcp), (datagrams.local_addr().unwrap(), Transport::Udp)];
    for (address, transport) in both {
        let start = Instant::now();
        let answer = call(address, transport, ECHO, 1, b"", start + Duration::from_millis(200));
        assert!(matches!(answer, Err(RpcError::TimeLimit)), "{answer:?}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_port_without_a_server_is_an_error_at_once() {
    // Bound, so that nobody else gets it, and nobody listens.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    let answer = call(address, Transport::Tcp, ECHO, 1, b"", soon());
    assert!(matches!(answer, Err(RpcError::Network(_))), "{answer:?}");
}

#[test]
fn ports_in_universal_addresses() {
    assert_eq!(universal_port(b"0.0.0.0.128.17"), Some(0x8011));
    assert_eq!(universal_port(b"::.8.1"), Some(2049));
    assert_eq!(universal_port(b""), None);
    assert_eq!(universal_port(b"1.2.3.4.5.256"), None);
}
