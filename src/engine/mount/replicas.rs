//! Replicated NFS servers: which to try, in which order.
//!
//! Each server gets a NULL call, all side by side. The nearest of those that answer come first; of equally near ones those
//! whose response time, times weight plus one, is the least. A server that does not answer costs no time once another
//! one has: it is waited for only as long as it could still come first.

use crate::engine::maps::Replica;
use crate::engine::maps::local::{Distance, Networks};
use crate::engine::maps::options::{name_value, split};
use crate::engine::rpc::{self, Program, Transport};
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Number of NFS among RPC programs.
const NFS: u32 = 100_003;
/// Where NFS version 4 listens.
const NFS_PORT: u16 = 2049;
/// How long the first answer is waited for.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 30 } else { 5 });
/// How long a server that is nearer than one which has answered may take at least.
const GRACE: Duration = Duration::from_millis(50);
/// Addresses of one server that are tried.
const ADDRESSES: usize = 4;

/// What counts among servers that are equally near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Response time and weight.
    Cost,
    /// Weight alone.
    Weight,
    /// Chance.
    Chance,
}

/// The servers that answer, best first. Not asked: a single one, and this machine.
pub(super) fn choose<'a>(
    fstype: &str,
    options: &OsStr,
    sources: &'a [Replica],
    by: By,
    limit: Duration,
) -> Vec<&'a Replica> {
    let replicated = sources.len() > 1 && matches!(fstype, "nfs" | "nfs4");
    // Nobody listens to calls over RDMA as they are made here.
    if !replicated || split(options).any(|option| option == "rdma" || option == "proto=rdma") {
        return sources.iter().collect();
    }
    let begin = Instant::now();
    let mut seen: Vec<Seen> = sources.iter().map(Seen::new).collect();
    let answers = ask(sources, Arc::new(ways(fstype, options)), begin + PATIENCE.min(limit));
    while let Some(wait) = patience(&seen, by, begin.elapsed(), PATIENCE.min(limit)) {
        match answers.recv_timeout(wait) {
            Ok(Heard::Distance(index, distance)) => seen[index].distance = distance,
            Ok(Heard::Answer(index, time)) => seen[index].answer(time),
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody is left who could answer.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    order(&seen, by, &RandomState::new()).into_iter().map(|index| &sources[index]).collect()
}

/// What is known of a server.
#[derive(Clone, Copy, Debug)]
struct Seen {
    distance: Distance,
    weight: u32,
    time: Option<Duration>,
}

impl Seen {
    fn new(replica: &Replica) -> Self {
        let here = replica.local.is_some();
        // Until its addresses are known it may be as near as can be.
        Self { distance: Distance::Here, weight: replica.weight, time: here.then_some(Duration::ZERO) }
    }

    /// One of its addresses and versions answered; the fastest counts.
    fn answer(&mut self, time: Duration) {
        self.time = Some(self.time.map_or(time, |known| known.min(time)));
    }

    fn cost(&self, by: By, time: Duration) -> u128 {
        match by {
            By::Cost => time.as_micros() * (u128::from(self.weight) + 1),
            By::Weight | By::Chance => self.weight.into(),
        }
    }
}

/// Those that have answered, best first.
fn order(seen: &[Seen], by: By, chance: &impl BuildHasher) -> Vec<usize> {
    let mut answered: Vec<(_, usize)> = seen
        .iter()
        .enumerate()
        .filter_map(|(index, server)| {
            let cost = match by {
                By::Chance => chance.hash_one(index).into(),
                _ => server.cost(by, server.time?),
            };
            server.time.map(|_| ((server.distance, cost), index))
        })
        .collect();
    // Equal ones stay in the order of the entry.
    answered.sort();
    answered.into_iter().map(|(_, index)| index).collect()
}

/// How long to wait for more answers; `None`: what is known is enough.
fn patience(seen: &[Seen], by: By, elapsed: Duration, limit: Duration) -> Option<Duration> {
    let rank = |server: &Seen, time: Duration| (server.distance, server.cost(by, time));
    let answered = seen.iter().filter_map(|server| Some((rank(server, server.time?), server.time?)));
    let until = match answered.min() {
        None => limit,
        Some((best, time)) => {
            let mut silent = seen.iter().filter(|server| server.time.is_none());
            let may_win = silent.any(|server| rank(server, elapsed) < best);
            if !may_win || by == By::Chance && elapsed > GRACE {
                return None;
            }
            limit.min(GRACE + 4 * time)
        }
    };
    until.checked_sub(elapsed).filter(|left| !left.is_zero())
}

/// A version of NFS and how to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    version: u32,
    transport: Transport,
    /// `None`: rpcbind knows.
    port: Option<u16>,
}

/// The ways that mount.nfs would go with these options.
fn ways(fstype: &str, options: &OsStr) -> Vec<Way> {
    let mut version = if fstype == "nfs4" { Some(4) } else { None };
    let (mut transport, mut port) = (Transport::Tcp, None);
    for option in split(options) {
        let (name, value) = name_value(option);
        let (name, value) = (name.to_string_lossy(), value.map(OsStr::to_string_lossy).unwrap_or_default());
        let number = |text: &str| text.split('.').next().and_then(|major| major.parse().ok());
        match &*name {
            "vers" | "nfsvers" => version = number(&value).or(version),
            "v2" | "v3" | "v4" | "v4.0" | "v4.1" | "v4.2" => version = number(&name[1..]),
            "udp" => transport = Transport::Udp,
            "proto" if value.starts_with("udp") => transport = Transport::Udp,
            "port" => port = value.parse().ok().filter(|port| *port != 0),
            _ => {}
        }
    }
    let versions = match version {
        Some(version) => vec![version],
        None => vec![4, 3],
    };
    let way = |version: u32| match version {
        // It has no datagrams and no rpcbind.
        4 => Way { version, transport: Transport::Tcp, port: port.or(Some(NFS_PORT)) },
        _ => Way { version, transport, port },
    };
    versions.into_iter().map(way).collect()
}

/// What the threads that ask tell, with the number of the server.
enum Heard {
    Distance(usize, Distance),
    Answer(usize, Duration),
}

/// Ask all servers. The threads end by themselves; whoever hangs in a name service is left to it.
fn ask(sources: &[Replica], ways: Arc<Vec<Way>>, deadline: Instant) -> Receiver<Heard> {
    let (heard, answers) = channel();
    let networks = Arc::new(Networks::of_this_machine());
    for (index, replica) in sources.iter().enumerate() {
        let Some(host) = replica.host.clone().filter(|_| replica.local.is_none()) else { continue };
        let (heard, ways, networks) = (heard.clone(), ways.clone(), networks.clone());
        spawn(move || {
            let bare = host.trim_matches(['[', ']']);
            let Ok(addresses) = (bare, 0).to_socket_addrs() else { return };
            let addresses: Vec<IpAddr> = addresses.map(|found| found.ip()).take(ADDRESSES).collect();
            let nearest = addresses.iter().map(|address| networks.distance(*address)).min();
            let _ = heard.send(Heard::Distance(index, nearest.unwrap_or(Distance::Far)));
            for address in addresses {
                for way in ways.iter().copied() {
                    let heard = heard.clone();
                    spawn(move || ping(index, address, way, deadline, &heard));
                }
            }
        });
    }
    answers
}

fn spawn(body: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("probe".into()).spawn(body) {
        tracing::warn!(%error, "no thread to ask a server");
    }
}

fn ping(index: usize, address: IpAddr, way: Way, deadline: Instant, heard: &Sender<Heard>) {
    let program = Program { number: NFS, version: way.version };
    let port = match way.port {
        Some(port) => Ok(port),
        None => rpc::port(address, way.transport, program, deadline),
    };
    let asked = port.and_then(|port| {
        let begin = Instant::now();
        rpc::call(SocketAddr::new(address, port), way.transport, program, 0, &[], deadline)?;
        Ok(begin.elapsed())
    });
    match asked {
        // Nobody listens any more when enough is known.
        Ok(time) => drop(heard.send(Heard::Answer(index, time))),
        Err(error) => {
            tracing::debug!(target: "autofs_cr::mount", %address, version = way.version, %error, "no NFS");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasherDefault;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn seen(distance: Distance, weight: u32, millis: impl Into<Option<u64>>) -> Seen {
        Seen { distance, weight, time: millis.into().map(Duration::from_millis) }
    }

    fn ordered(servers: &[Seen], by: By) -> Vec<usize> {
        order(servers, by, &BuildHasherDefault::<std::hash::DefaultHasher>::default())
    }

    #[test]
    fn the_nearest_then_the_fastest_by_weight() {
        use Distance::{Far, Here, Network, Subnet};
        let servers = [
            seen(Far, 0, 1),
            seen(Subnet, 0, 9),
            seen(Network, 0, 1),
            seen(Subnet, 0, 5),
            seen(Here, 0, None),
        ];
        assert_eq!(ordered(&servers, By::Cost), [3, 1, 2, 0]);
        // time × (weight + 1)
        let servers = [seen(Far, 3, 4), seen(Far, 0, 15), seen(Far, 9, 1), seen(Far, 0, 15)];
        assert_eq!(ordered(&servers, By::Cost), [2, 1, 3, 0]);
        assert_eq!(ordered(&servers, By::Weight), [1, 3, 0, 2]);
        let mut all = ordered(&servers, By::Chance);
        all.sort();
        assert_eq!(all, [0, 1, 2, 3]);
        assert!(ordered(&[seen(Here, 0, None)], By::Cost).is_empty());
    }

    #[test]
    fn nobody_is_waited_for_who_cannot_come_first() {
        use Distance::{Far, Subnet};
        let wait = |servers: &[Seen], millis| {
            let limit = Duration::from_secs(5);
            let wait = patience(servers, By::Cost, Duration::from_millis(millis), limit);
            wait.map(|wait| wait.as_millis())
        };
        assert_eq!(wait(&[seen(Far, 0, None), seen(Far, 0, None)], 1000), Some(4000));
        assert_eq!(wait(&[seen(Far, 0, None)], 5000), None);
        assert_eq!(wait(&[seen(Far, 0, 1), seen(Far, 0, 2)], 3), None);
        // one as near that has taken longer already
        assert_eq!(wait(&[seen(Far, 0, 1), seen(Far, 0, None)], 2), None);
        assert_eq!(wait(&[seen(Far, 4, 1), seen(Far, 0, None)], 2), Some(52));
        // a nearer one has its grace
        assert_eq!(wait(&[seen(Far, 0, 1), seen(Subnet, 0, None)], 2), Some(52));
        assert_eq!(wait(&[seen(Far, 0, 1), seen(Subnet, 0, None)], 60), None);
        assert_eq!(wait(&[seen(Subnet, 0, 1), seen(Far, 0, None)], 0), None);
    }

    #[test]
    fn ways_are_those_of_the_options() {
        let ways = |fstype, options: &str| {
            let ways = ways(fstype, OsStr::new(options));
            ways.iter().map(|way| (way.version, way.transport, way.port)).collect::<Vec<_>>()
        };
        use Transport::{Tcp, Udp};
        assert_eq!(ways("nfs", "ro"), [(4, Tcp, Some(2049)), (3, Tcp, None)]);
        assert_eq!(ways("nfs4", "ro"), [(4, Tcp, Some(2049))]);
        assert_eq!(ways("nfs", "vers=4.2"), [(4, Tcp, Some(2049))]);
        assert_eq!(ways("nfs", "nfsvers=3,udp"), [(3, Udp, None)]);
        assert_eq!(ways("nfs", "v3,port=9,proto=udp6"), [(3, Udp, Some(9))]);
    }

    /// A server that answers after a time, or never.
    fn server(address: &str, port: u16, delay: Option<Duration>) -> u16 {
        let listener = TcpListener::bind((address, port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 44];
                if let (Some(delay), Ok(())) = (delay, stream.read_exact(&mut request)) {
                    std::thread::sleep(delay);
                    let id = u32::from_be_bytes(request[4..8].try_into().unwrap());
                    let words = [0x8000_0018, id, 1, 0, 0, 0, 0];
                    let answer: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
                    let _ = stream.write_all(&answer);
                }
                open.push(stream);
            }
        });
        port
    }

    #[test]
    fn servers_are_asked_side_by_side() {
        let replica = |last: u8| Replica {
            host: Some(format!("127.0.0.{last}")),
            weight: 0,
            source: format!("127.0.0.{last}:/x").into(),
            local: None,
        };
        let port = server("127.0.0.2", 0, Some(Duration::from_millis(30)));
        server("127.0.0.3", port, Some(Duration::ZERO));
        server("127.0.0.4", port, None);
        let options = format!("vers=3,port={port}");
        let ask = |sources: &[Replica]| -> Vec<String> {
            let chosen = choose("nfs", OsStr::new(&options), sources, By::Weight, PATIENCE);
            chosen.iter().map(|replica| replica.host.clone().unwrap()).collect()
        };
        let begin = Instant::now();
        // .4 says nothing, nobody is at .5
        let sources = [4, 5, 2, 3].map(replica);
        let chosen = ask(&sources);
        assert!(chosen[0] == "127.0.0.3" || chosen[0] == "127.0.0.2", "{chosen:?}");
        assert!(!chosen.contains(&"127.0.0.4".into()) && !chosen.contains(&"127.0.0.5".into()), "{chosen:?}");
        assert!(begin.elapsed() < PATIENCE, "it waited for .4");
        let begin = Instant::now();
        assert!(ask(&[5, 6].map(replica)).is_empty(), "nobody answers");
        assert!(begin.elapsed() < PATIENCE, "that is told at once");
    }
}
