//! Which hosts are this machine.

use std::net::{IpAddr, ToSocketAddrs};

/// Does a host's name or address stand for this machine? Asks the name service for names.
pub fn is_local(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    // `%eth0` says over which interface an address is reached, not whose it is.
    let bare = bare.split_once('%').map_or(bare, |(address, _)| address);
    let addresses: Vec<IpAddr> = match bare.parse() {
        Ok(address) => vec![address],
        Err(_) => match (bare, 0).to_socket_addrs() {
            Ok(found) => found.map(|socket| socket.ip()).collect(),
            Err(_) => return false,
        },
    };
    addresses.iter().any(IpAddr::is_loopback) || {
        let own = own_addresses();
        addresses.iter().any(|address| own.contains(address))
    }
}

fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    interfaces.filter_map(address).collect()
}
