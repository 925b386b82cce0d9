//! What maps ask about this machine and its networks.

use super::source::HostsSource;
use super::text::Text;
use std::ffi::CString;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

/// Questions of maps. Answers may take the time of a name service; tests give their own.
pub trait Machine {
    /// Does a host's name or address stand for this machine?
    fn is_local(&self, host: &str) -> bool;
    /// Is an interface on this network? `10.1.0.0`, `10.1.0.0/24`, `10.1.0.0/255.255.255.0`, or a name.
    fn is_on_network(&self, network: &str) -> bool;
    /// Is a host on a network that an interface is on?
    fn is_near(&self, host: &str) -> bool;
    /// Is a host in a netgroup?
    fn is_in_netgroup(&self, netgroup: &str, host: &str) -> bool;
    /// The canonical name of a host; `None` when it is unknown.
    fn canonical(&self, _host: &str) -> Option<String> {
        None
    }
    /// What a host exports, as an entry in sun format with these options; `None`: nothing, or it does not say.
    fn exports(&self, _host: &str, _options: &[Vec<u8>]) -> Option<Text<'static>> {
        None
    }
    /// Is there a file?
    fn exists(&self, path: &Path) -> bool;
}

/// No machine at all, so that a check asks no name service.
#[derive(Debug)]
pub struct Nowhere;

impl Machine for Nowhere {
    fn is_local(&self, _: &str) -> bool {
        false
    }
    fn is_on_network(&self, _: &str) -> bool {
        false
    }
    fn is_near(&self, _: &str) -> bool {
        false
    }
    fn is_in_netgroup(&self, _: &str, _: &str) -> bool {
        false
    }
    fn exists(&self, _: &Path) -> bool {
        true
    }
}

/// This machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn is_local(&self, host: &str) -> bool {
        let addresses = addresses(host);
        addresses.iter().any(IpAddr::is_loopback)
            || interfaces().iter().any(|interface| addresses.contains(&interface.address))
    }

    fn is_on_network(&self, network: &str) -> bool {
        let (name, mask) = network.split_once('/').unwrap_or((network, ""));
        let Some(network) = addresses(name).first().copied() else {
            return false;
        };
        interfaces().iter().any(|interface| {
            let length = mask_length(mask, network).unwrap_or(interface.prefix);
            same_network(interface.address, network, length)
        })
    }

    fn is_near(&self, host: &str) -> bool {
        let near = |address: &IpAddr| {
            let shares = |interface: &Interface| same_network(interface.address, *address, interface.prefix);
            address.is_loopback() || interfaces().iter().any(shares)
        };
        addresses(host).iter().any(near)
    }

    fn is_in_netgroup(&self, netgroup: &str, host: &str) -> bool {
        match (CString::new(netgroup), CString::new(host)) {
            (Ok(netgroup), Ok(host)) => crate::sys::netgroup::has_host(&netgroup, &host),
            _ => false,
        }
    }

    fn canonical(&self, host: &str) -> Option<String> {
        crate::sys::hostname::canonical(&CString::new(host).ok()?)
    }

    fn exports(&self, host: &str, options: &[Vec<u8>]) -> Option<Text<'static>> {
        let found = HostsSource::new(options).host(host);
        Some(found.inspect_err(|error| tracing::warn!("{error}")).ok()??.text)
    }

    fn exists(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok()
    }
}

/// Addresses of a host; none when it is unknown.
fn addresses(host: &str) -> Vec<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    // `%eth0` says over which interface an address is reached, not whose it is.
    let bare = bare.split_once('%').map_or(bare, |(address, _)| address);
    match bare.parse() {
        Ok(address) => vec![address],
        Err(_) => {
            (bare, 0).to_socket_addrs().map(|found| found.map(|s| s.ip()).collect()).unwrap_or_default()
        }
    }
}

/// How far away an address is; the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// This machine.
    Here,
    /// On the subnet of an interface.
    Subnet,
    /// In the class A, B or C network of an interface.
    Network,
    /// Elsewhere.
    Far,
}

/// The networks that this machine is on.
pub struct Networks(Vec<Interface>);

impl Networks {
    /// As they are now.
    pub fn of_this_machine() -> Self {
        Self(interfaces())
    }

    /// How far an address is.
    pub fn distance(&self, address: IpAddr) -> Distance {
        let shares = |prefix: &dyn Fn(&Interface) -> u32| {
            self.0.iter().any(|interface| same_network(interface.address, address, prefix(interface)))
        };
        if address.is_loopback() || self.0.iter().any(|interface| interface.address == address) {
            Distance::Here
        } else if shares(&|interface| interface.prefix) {
            Distance::Subnet
        } else if shares(&|_| class(address)) {
            Distance::Network
        } else {
            Distance::Far
        }
    }
}

/// Length of the network's prefix by the class of an IPv4 address; 0: it has none.
fn class(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => match v4.octets()[0] {
            0..128 => 8,
            128..192 => 16,
            192..224 => 24,
            _ => 0,
        },
        IpAddr::V6(_) => 0,
    }
}

struct Interface {
    address: IpAddr,
    /// Length of the network's prefix, bits.
    prefix: u32,
}

fn interfaces() -> Vec<Interface> {
    let ip = |address: Option<nix::sys::socket::SockaddrStorage>| {
        let address = address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let interface = |found: nix::ifaddrs::InterfaceAddress| {
        let address = ip(found.address)?;
        let prefix = ip(found.netmask).map_or(0, |mask| bits(mask).0.count_ones());
        Some(Interface { address, prefix })
    };
    all.filter_map(interface).collect()
}

/// An address as a number, and its length.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (v4.to_bits().into(), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn same_network(a: IpAddr, b: IpAddr, prefix: u32) -> bool {
    let ((a, length), (b, other)) = (bits(a), bits(b));
    // A prefix of no bits would be every network there is.
    length == other && prefix > 0 && (a ^ b).checked_shr(length.saturating_sub(prefix)).unwrap_or(0) == 0
}

/// `24` or `255.255.255.0`; `None` when it is neither.
fn mask_length(mask: &str, network: IpAddr) -> Option<u32> {
    let length = match mask.parse::<IpAddr>() {
        Ok(mask) => bits(mask).0.count_ones(),
        Err(_) => mask.parse().ok()?,
    };
    (length <= bits(network).1).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(same_network(ip("10.1.0.1"), ip("10.1.0.77"), 24));
        assert!(!same_network(ip("10.1.0.1"), ip("10.1.1.77"), 24));
        assert!(!same_network(ip("10.1.0.1"), ip("fd00::1"), 24));
        assert!(same_network(ip("fd00::1"), ip("fd00::2"), 64));
        assert!(same_network(ip("10.1.0.1"), ip("10.1.0.1"), 32));
        assert!(!same_network(ip("10.1.0.1"), ip("10.1.0.1"), 0));
        assert_eq!(mask_length("24", ip("10.0.0.0")), Some(24));
        assert_eq!(mask_length("255.255.0.0", ip("10.0.0.0")), Some(16));
        assert_eq!(mask_length("", ip("10.0.0.0")), None);
        assert_eq!(mask_length("99", ip("10.0.0.0")), None);
    }

    #[test]
    fn distances() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let networks = Networks(vec![
            Interface { address: ip("10.1.2.3"), prefix: 24 },
            Interface { address: ip("fd00::1"), prefix: 64 },
        ]);
        for (address, distance) in [
            ("127.0.0.9", Distance::Here),
            ("10.1.2.3", Distance::Here),
            ("10.1.2.4", Distance::Subnet),
            ("10.9.9.9", Distance::Network),
            ("192.168.1.1", Distance::Far),
            ("fd00::2", Distance::Subnet),
            ("fd01::2", Distance::Far),
        ] {
            assert_eq!(networks.distance(ip(address)), distance, "{address}");
        }
        assert!(Distance::Here < Distance::Subnet && Distance::Network < Distance::Far);
    }

    #[test]
    fn this_machine_is_local() {
        assert!(ThisMachine.is_local("127.0.0.1"));
        assert!(ThisMachine.is_local("[::1]"));
        assert!(!ThisMachine.is_local("192.0.2.1"));
        assert!(ThisMachine.exists(Path::new("/")));
    }
}
