//! Every order of events: the machine and the real jobs over the simulated kernel.

use super::super::kernel::Kernel;
use super::super::kernel::simulated::{Simulated, Visit};
use super::super::maps::{Credentials, MountSpec, Replica, Resolved, What};
use super::super::served::{Opener, ServeOptions, Source};
use super::super::workers::Ticket;
use super::*;
use crate::discover::facts::MountType;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A map in memory.
#[derive(Debug, Default)]
struct Table {
    entries: Mutex<BTreeMap<Vec<u8>, Vec<(&'static str, What)>>>,
}

impl Source for Table {
    fn lookup(&self, key: &[u8], _who: Credentials) -> Result<Option<Resolved>, Errno> {
        let entries = self.entries.lock().unwrap();
        Ok(entries.get(key).map(|specs| Resolved {
            mounts: specs
                .iter()
                .map(|(offset, what)| MountSpec { offset: offset.into(), what: what.clone() })
                .collect(),
            ..Resolved::default()
        }))
    }
    fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, Errno> {
        Ok(Some(self.entries.lock().unwrap().keys().cloned().collect()))
    }
}

#[derive(Debug)]
struct Submounts;

impl Opener for Submounts {
    fn submount(&self, parent: &Served, target: &Path, _: &OsStr, _: &OsStr) -> Result<Served, Errno> {
        Ok(served(Some(target), table(&[("in", &[("", tmpfs())])]), parent.options.clone()))
    }
}

fn tmpfs() -> What {
    What::Mount {
        fstype: "tmpfs".into(),
        options: OsString::new(),
        sources: vec![Replica::plain("x")],
        use_weight_only: false,
    }
}

fn table(entries: &[(&str, &[(&'static str, What)])]) -> Table {
    let entries = entries.iter().map(|(key, specs)| (key.as_bytes().to_vec(), specs.to_vec()));
    Table { entries: Mutex::new(entries.collect()) }
}

fn served(point: Option<&Path>, source: impl Source + 'static, options: ServeOptions) -> Served {
    Served {
        point: point.map(Path::to_path_buf),
        name: "map".into(),
        source: Box::new(source),
        options,
        opener: Arc::new(Submounts),
    }
}

fn options() -> ServeOptions {
    ServeOptions { timeout: Duration::from_secs(40), ..ServeOptions::default() }
}

/// A machine, its kernel, its workers, and visitors.
struct Bench {
    state: State,
    kernel: Simulated,
    now: Instant,
    jobs: VecDeque<(JobId, Task, Option<Arc<Ticket>>)>,
    tickets: HashMap<JobId, Arc<Ticket>>,
    results: VecDeque<Event>,
    runs: Vec<(GroupId, Vec<Arc<Place>>, Option<Token>)>,
    visits: Vec<(PathBuf, Token)>,
    exited: bool,
}

const PATHS: [&str; 14] = [
    "/i/plain",
    "/i/absent",
    "/i/link",
    "/i/multi/a",
    "/i/multi/a/b",
    "/i/multi/c",
    "/i/rooted",
    "/i/rooted/s/deep",
    "/i/sub",
    "/i/sub/in",
    "/i/sub/none",
    "/d/one",
    "/d/two",
    "/d/two/x",
];

impl Bench {
    fn new() -> Self {
        let multi: &[(&str, What)] = &[("a", tmpfs()), ("a/b", tmpfs()), ("c", tmpfs())];
        let submount = What::Submount { map: "m".into(), options: OsString::new() };
        let indirect = table(&[
            ("plain", &[("", tmpfs())]),
            ("link", &[("", What::Symlink("/usr".into()))]),
            ("multi", multi),
            ("rooted", &[("", tmpfs()), ("s", tmpfs())]),
            ("sub", &[("", submount)]),
        ]);
        let direct = table(&[("/d/one", &[("", tmpfs())]), ("/d/two", &[("x", tmpfs())])]);
        let kernel = Simulated::default();
        let mut state = State::new(Limits { failures: 2, ..Limits::default() });
        let indirect = Arc::new(served(Some(Path::new("/i")), indirect, options()));
        let direct = Arc::new(served(None, direct, options()));
        let group = state.add_group(indirect.clone());
        let place = kernel.make_trigger(Path::new("/i"), MountType::Indirect, &indirect).unwrap();
        state.add_mount(group, Arc::new(place));
        let group = state.add_group(direct.clone());
        for path in ["/d/one", "/d/two"] {
            let place = super::super::jobs::direct(&kernel, Path::new(path), &direct).unwrap();
            state.add_mount(group, Arc::new(place));
        }
        Self {
            state,
            kernel,
            now: Instant::now(),
            jobs: VecDeque::new(),
            tickets: HashMap::new(),
            results: VecDeque::new(),
            runs: Vec::new(),
            visits: Vec::new(),
            exited: false,
        }
    }

    fn visit(&mut self, path: &Path) {
        let visit = self.kernel.world().visit(path);
        if let Visit::Waits(token) = visit {
            self.visits.push((path.to_path_buf(), token));
        }
        self.pump();
    }

    fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        if !self.exited {
            self.state.step(event, self.now, &mut out);
        }
        for action in out {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Run(id, task) => {
                let ticket = Ticket::of(&task).map(Arc::new);
                self.tickets.extend(ticket.clone().map(|ticket| (id, ticket)));
                self.jobs.push_back((id, task, ticket));
            }
            Action::GiveUp(id) => {
                if let Some(ticket) = self.tickets.get(&id).filter(|ticket| ticket.claim()) {
                    self.kernel.answer(&ticket.place, ticket.token, Err(Errno::TIMEDOUT)).unwrap();
                }
            }
            Action::Answer(place, token, result) => self.kernel.answer(&place, token, result).unwrap(),
            Action::Orphan(dev, token, errno) => {
                let place = self.kernel.find(dev).unwrap();
                self.kernel.answer(&place, token, Err(errno)).unwrap();
            }
            Action::Expire(group, run) => {
                let places = run.levels.into_iter().flatten().collect();
                self.runs.push((group, places, None));
            }
            Action::Exit => {
                self.exited = true;
                // the pipe's last reader goes: all mounts are catatonic
                let mounts: Vec<_> = self.state.mounts.values().map(|mount| mount.place.clone()).collect();
                for place in mounts {
                    self.kernel.make_catatonic(&place).unwrap();
                }
            }
        }
    }

    /// Run a job as a worker does: report, then answer.
    fn work(&mut self, at: usize) {
        let Some((id, task, ticket)) = self.jobs.remove(at) else { return };
        let outcome = super::super::jobs::run(&self.kernel, &task);
        let result = outcome.result();
        self.results.push_back(Event::Done(id, outcome));
        if let Some(ticket) = ticket.filter(|ticket| ticket.claim()) {
            self.kernel.answer(&ticket.place, ticket.token, result).unwrap();
        }
        self.pump();
    }

    /// Deliver what is there: results before each packet; visitors and expire runs go on.
    fn pump(&mut self) {
        loop {
            if let Some(result) = self.results.pop_front() {
                self.event(result);
                continue;
            }
            let packet = {
                let mut world = self.kernel.world();
                let some = !world.packets.is_empty() && !self.exited;
                some.then(|| world.packets.remove(0))
            };
            if let Some(packet) = packet {
                self.event(Event::Packet(packet));
                continue;
            }
            if !self.go_on() {
                return;
            }
        }
    }

    fn go_on(&mut self) -> bool {
        let answered = |kernel: &Simulated, token: &Token| kernel.world().answers.get(token).copied();
        for at in 0..self.visits.len() {
            let (path, token) = self.visits[at].clone();
            if let Some(result) = answered(&self.kernel, &token) {
                self.visits.remove(at);
                let was_expire = result == Ok(()) || self.kernel.world().was_expire(token);
                if was_expire && let Visit::Waits(token) = self.kernel.world().visit(&path) {
                    self.visits.push((path, token));
                }
                return true;
            }
        }
        for at in 0..self.runs.len() {
            let (group, places, token) = &mut self.runs[at];
            let group = *group;
            match token {
                Some(waits) => match answered(&self.kernel, waits) {
                    Some(Err(_)) => _ = places.remove(0),
                    Some(Ok(())) if places[0].kind != MountType::Indirect => _ = places.remove(0),
                    Some(Ok(())) => {}
                    None => continue,
                },
                None if places.is_empty() => {
                    self.runs.remove(at);
                    self.event(Event::ExpireEnded(group));
                    return true;
                }
                None => {}
            }
            let next = places.first().and_then(|place| self.kernel.world().begin_expire(place));
            if next.is_none() && !places.is_empty() {
                places.remove(0);
            }
            *token = next;
            return true;
        }
        false
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.event(Event::Timer);
        self.pump();
    }

    /// All jobs run at last; then nobody waits, and every request had exactly one answer.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            self.work(0);
            self.pump();
        }
        prop_assert!(self.jobs.is_empty(), "jobs without end: {:?}", self.jobs);
        prop_assert!(self.state.jobs.is_empty() || self.exited);
        prop_assert!(self.visits.is_empty(), "visitors wait: {:?}", self.visits);
        let world = self.kernel.world();
        prop_assert!(world.wrong.is_empty(), "answers to nobody: {:?}", world.wrong);
        prop_assert!(world.pending.is_empty(), "no answer: {:?}", world.pending);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Visit(usize),
    Work(usize),
    Pass(u64),
    ExpireNow,
    Use(usize),
    Leave(usize),
    Break(usize),
    Mend(usize),
    Yank(usize),
    Reload(bool),
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    let path = 0..PATHS.len();
    prop_oneof![
        8 => path.clone().prop_map(Step::Visit),
        10 => (0usize..3).prop_map(Step::Work),
        3 => prop_oneof![Just(1u64), Just(11), Just(61)].prop_map(Step::Pass),
        3 => Just(Step::ExpireNow),
        1 => path.clone().prop_map(Step::Use),
        1 => path.clone().prop_map(Step::Leave),
        1 => path.clone().prop_map(Step::Break),
        1 => path.clone().prop_map(Step::Mend),
        1 => path.prop_map(Step::Yank),
        1 => any::<bool>().prop_map(Step::Reload),
    ]
}

fn play(bench: &mut Bench, step: &Step) {
    let path = |at: &usize| PathBuf::from(PATHS[*at]);
    match step {
        Step::Visit(at) => bench.visit(&path(at)),
        Step::Work(at) => bench.work(*at),
        Step::Pass(seconds) => bench.pass(*seconds),
        Step::ExpireNow => bench.event(Event::ExpireNow),
        Step::Use(at) => _ = bench.kernel.world().used.insert(path(at)),
        Step::Leave(at) => _ = bench.kernel.world().used.remove(&path(at)),
        Step::Break(at) => _ = bench.kernel.world().broken.insert(path(at)),
        Step::Mend(at) => _ = bench.kernel.world().broken.remove(&path(at)),
        // somebody else unmounts
        Step::Yank(at) => _ = bench.kernel.unmount(&path(at)),
        Step::Reload(_) => bench.event(Event::Reload),
        Step::Stop => bench.event(Event::Stop),
    }
    bench.pump();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_exactly_once(
        steps in prop::collection::vec(step(), 1..60),
        stop in prop::option::of(0usize..60),
    ) {
        let mut bench = Bench::new();
        for (at, step) in steps.iter().enumerate() {
            if stop == Some(at) {
                play(&mut bench, &Step::Stop);
            }
            play(&mut bench, step);
        }
        bench.settle()?;
    }

    #[test]
    fn whatever_happened_idle_mounts_go_and_new_lookups_work(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut bench = Bench::new();
        for step in &steps {
            play(&mut bench, step);
        }
        {
            let mut world = bench.kernel.world();
            world.used.clear();
            world.broken.clear();
        }
        bench.settle()?;
        for _ in 0..6 {
            bench.event(Event::ExpireNow);
            bench.settle()?;
        }
        bench.pass(120);
        bench.settle()?;
        for path in ["/i/plain", "/i/multi/a/b", "/i/rooted/s/deep", "/i/sub/in", "/d/one", "/d/two/x"] {
            bench.visit(Path::new(path));
            bench.settle()?;
            prop_assert_eq!(bench.kernel.world().visit(Path::new(path)), Visit::Arrived, "{}", path);
        }
    }
}
#[test]
fn dbg() {
    let steps = [
        Step::Visit(0),
        Step::Visit(0),
        Step::Visit(1),
        Step::Work(0),
        Step::Pass(11),
        Step::Work(0),
        Step::Visit(9),
        Step::Work(1),
        Step::Leave(0),
        Step::Pass(61),
        Step::Yank(8),
        Step::Work(0),
        Step::Work(0),
        Step::Pass(11),
    ];
    let mut bench = Bench::new();
    let show = |bench: &Bench| {
        let world = bench.kernel.world();
        for m in &world.mounts {
            eprintln!("    {m:?}");
        }
        eprintln!(
            "    pending {:?} runs {:?} jobs {:?}",
            world.pending,
            bench.runs.len(),
            bench
                .jobs
                .iter()
                .map(|(id, t, _)| (
                    id,
                    match t {
                        Task::Mount(m) => format!("mount {:?} {:?}", m.place.path, m.key),
                        Task::Unmount(m) => format!("unmount {:?} {:?}", m.place.path, m.key),
                        _ => "?".into(),
                    }
                ))
                .collect::<Vec<_>>()
        );
    };
    for step in &steps {
        eprintln!("{step:?}");
        play(&mut bench, step);
        show(&bench);
    }
    for _ in 0..8 {
        eprintln!("work");
        bench.work(0);
        bench.pump();
        show(&bench);
    }
}
