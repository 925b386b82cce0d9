//! Every order of events: the machine and the real jobs over the simulated kernel.
//!
//! Jobs run in threads of their own and stop before each call of the kernel, so that visitors, packets, other
//! jobs and the clock get in between at every place where they can.

mod cases;
mod maps;

use super::super::jobs;
use super::super::kernel::Kernel;
use super::super::kernel::simulated::{Baton, Simulated, Visit};
use super::super::maps::{Credentials, MountSpec, Replica, Resolved, What};
use super::super::served::{Opener, ServeOptions, Source};
use super::super::workers::Ticket;
use super::*;
use crate::discover::facts::MountType;
use maps::*;
use proptest::prelude::*;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

// The machine, its kernel, its workers, and visitors

struct Bench {
    state: State,
    kernel: Arc<Simulated>,
    maps: [Arc<Table>; 3],
    masters: Arc<Masters>,
    now: Instant,
    jobs: Vec<Job>,
    results: Vec<Event>,
    runs: Vec<Run>,
    visits: Vec<(PathBuf, Token)>,
    /// Results of jobs are delivered late: visitors and the kernel are faster.
    slow: bool,
    exited: bool,
}

struct Job {
    id: JobId,
    task: Arc<Task>,
    ticket: Option<Arc<Ticket>>,
    /// It has begun.
    thread: Option<JobThread>,
}

/// A job's thread, which has stopped before a call.
struct JobThread {
    go: Sender<()>,
    stopped: Receiver<()>,
    outcome: Receiver<Outcome>,
}

impl Job {
    fn new(id: JobId, task: Task) -> Self {
        Self { id, ticket: Ticket::of(&task).map(Arc::new), task: Arc::new(task), thread: None }
    }

    fn begin(&self, kernel: &Arc<Simulated>) -> JobThread {
        let (go, wait) = channel();
        let (stop, stopped) = channel();
        let (report, outcome) = channel();
        let (kernel, task) = (kernel.clone(), self.task.clone());
        std::thread::spawn(move || {
            Baton { stopped: stop, go: wait }.take();
            // nobody listens when the test is over
            let _ = report.send(jobs::run(&*kernel, &task, &|_, _| ()));
        });
        // up to its first call
        let _ = stopped.recv();
        JobThread { go, stopped, outcome }
    }

    /// Make some calls; the outcome, when it ends.
    fn work(&mut self, kernel: &Arc<Simulated>, calls: usize) -> Option<Outcome> {
        if self.thread.is_none() && calls == usize::MAX {
            // nothing comes in between
            return Some(jobs::run(&**kernel, &self.task, &|_, _| ()));
        }
        if self.thread.is_none() {
            self.thread = Some(self.begin(kernel));
        }
        let thread = self.thread.as_ref()?;
        for _ in 0..calls {
            if thread.go.send(()).is_err() || thread.stopped.recv().is_err() {
                return thread.outcome.recv().ok();
            }
        }
        None
    }
}

/// An expire run, as a thread of its own makes it.
struct Run {
    group: GroupId,
    places: Vec<Arc<Place>>,
    immediate: bool,
    stuck: Vec<Arc<Place>>,
    waits: Option<Token>,
}

impl Bench {
    fn new() -> Self {
        let kernel = Arc::new(Simulated::default());
        let mut state = State::new(Limits { failures: 2, ..Limits::default() });
        let maps = [table(&indirect_map()), table(&direct_map()), table(&browse_map())];
        let options = ServeOptions { timeout: Duration::from_secs(40), ..ServeOptions::default() };
        let mut all = Vec::new();
        for (point, table, browse) in [("/i", &maps[0], false), ("/b", &maps[2], true)] {
            let options = ServeOptions { browse, ..options.clone() };
            let served = Arc::new(served(Some(Path::new(point)), table, options));
            kernel.make_dir(Path::new(point), 0).unwrap();
            let place = kernel.make_trigger(Path::new(point), MountType::Indirect, &served).unwrap();
            if browse {
                jobs::browse(&*kernel, &served, &place, &table.keys().unwrap().unwrap());
            }
            all.push(served.clone());
            let group = state.add_group(served);
            state.add_mount(group, Arc::new(place));
        }
        let direct = Arc::new(served(None, &maps[1], options.clone()));
        // a key of its own, and one that another map has as well
        let other = table(&[("/d/other", entry(&[""])), ("/d/one", entry(&["x"]))]);
        let other = Served { name: "other".into(), ..served(None, &other, options) };
        all.extend([direct.clone(), Arc::new(other)]);
        let masters = Arc::new(Masters(all, Mutex::new(USUAL.into())));
        state.set_master(masters.clone());
        let group = state.add_group(direct.clone());
        for path in ["/d/one", "/d/two"] {
            let place = jobs::direct(&*kernel, Path::new(path), &direct).unwrap();
            state.add_mount(group, Arc::new(place));
        }
        // directories of direct triggers stay
        kernel.make_dir(Path::new("/d/new"), 0).unwrap();
        Self {
            state,
            kernel,
            maps,
            masters,
            now: Instant::now(),
            jobs: Vec::new(),
            results: Vec::new(),
            runs: Vec::new(),
            visits: Vec::new(),
            slow: false,
            exited: false,
        }
    }

    fn visit(&mut self, path: &str) {
        let visit = self.kernel.world().visit(Path::new(path));
        if let Visit::Waits(token) = visit {
            self.visits.push((path.into(), token));
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
            Action::Run(id, task) => self.jobs.push(Job::new(id, task)),
            Action::GiveUp(id) => {
                let ticket = self.jobs.iter().find(|job| job.id == id).and_then(|job| job.ticket.clone());
                if let Some(answer) = ticket.and_then(|ticket| ticket.claim(Err(Errno::TIMEDOUT))) {
                    let _ = self.kernel.answer(&answer.place, answer.token, answer.result);
                }
            }
            Action::Answer(Answer { place, token, result, .. }) => {
                _ = self.kernel.answer(&place, token, result)
            }
            Action::Unknown(packet) => {
                let place = self.kernel.find(packet.dev).unwrap();
                let _ = self.kernel.answer(&place, packet.token, Err(Errno::NOENT));
            }
            Action::Orphan(dev, token, errno) => {
                let place = self.kernel.find(dev).unwrap();
                let _ = self.kernel.answer(&place, token, Err(errno));
            }
            Action::Expire(group, run) => {
                let (immediate, places) = (run.immediate, run.levels.into_iter().flatten().collect());
                self.runs.push(Run { group, places, immediate, stuck: Vec::new(), waits: None });
            }
            // there is no other program
            Action::Leave(mut packets) => {
                let tickets = self.jobs.iter().filter_map(|job| job.ticket.as_ref());
                let unanswered = tickets.filter_map(|ticket| ticket.claim(Err(Errno::TIMEDOUT)));
                packets.extend(unanswered.map(|answer| answer.packet()));
                self.event(Event::Stay(packets));
            }
            Action::Exit => self.exit(),
        }
    }

    /// The process ends, and with it the pipe's last reader: all mounts are catatonic.
    fn exit(&mut self) {
        self.exited = true;
        self.jobs.clear();
        let places: Vec<_> = self.kernel.world().autofs_places();
        for place in places {
            self.kernel.make_catatonic(&place).unwrap();
        }
    }

    /// Let a job make some calls.
    fn work(&mut self, at: usize, calls: usize) {
        let Some(job) = self.jobs.get_mut(at) else { return };
        if let Some(outcome) = job.work(&self.kernel, calls) {
            let job = self.jobs.remove(at);
            let result = outcome.result();
            self.results.push(Event::Done(job.id, outcome));
            if let Some(answer) = job.ticket.and_then(|ticket| ticket.claim(result)) {
                let _ = self.kernel.answer(&answer.place, answer.token, answer.result);
            }
        }
        self.pump();
    }

    /// Deliver what is there; visitors and expire runs go on.
    fn pump(&mut self) {
        loop {
            // packets overtake results: the pipe may be read first
            let packet = {
                let packets = &mut self.kernel.world().packets;
                (!packets.is_empty() && !self.exited).then(|| packets.remove(0))
            };
            if let Some(packet) = packet {
                self.event(Event::Packet(packet));
            } else if self.slow && self.go_on() {
            } else if !self.results.is_empty() {
                let result = self.results.remove(0);
                self.event(result);
            } else if !self.go_on() {
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
                let goes_on = result == Ok(()) || self.kernel.world().was_expire(token);
                if goes_on && let Visit::Waits(token) = self.kernel.world().visit(&path) {
                    self.visits.push((path, token));
                }
                return true;
            }
        }
        for at in 0..self.runs.len() {
            let run = &mut self.runs[at];
            match run.waits.map(|waits| answered(&self.kernel, &waits)) {
                Some(None) => continue,
                // as the workers do it: a trigger once, keys until nothing is idle or one is not unmounted
                Some(Some(result)) if result.is_err() || run.places[0].kind != MountType::Indirect => {
                    let place = run.places.remove(0);
                    run.stuck.extend(Some(place).filter(|place| {
                        result.is_err() && run.immediate && place.kind == MountType::Indirect
                    }));
                }
                Some(Some(_)) | None => {}
            }
            let Some(place) = run.places.first() else {
                let Run { group, stuck, .. } = self.runs.remove(at);
                self.event(Event::ExpireEnded(group, stuck));
                return true;
            };
            run.waits = self.kernel.world().begin_expire(place);
            if run.waits.is_none() {
                run.places.remove(0);
            }
            return true;
        }
        false
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.event(Event::Timer);
        self.pump();
    }

    fn expire_now(&mut self) {
        self.event(Event::ExpireNow(None));
        self.pump();
    }

    /// All jobs run to their end; then nobody waits, and every request had exactly one answer.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.pump();
        for _ in 0..200 {
            self.work(0, usize::MAX);
        }
        let tasks: Vec<_> = self.jobs.iter().map(|job| job.id).collect();
        prop_assert!(tasks.is_empty(), "jobs without end: {:?}", self.runs.len());
        prop_assert!(self.state.jobs.is_empty() || self.exited);
        prop_assert!(self.visits.is_empty(), "visitors wait: {:?}", self.visits);
        let world = self.kernel.world();
        prop_assert!(world.wrong.is_empty(), "answers to nobody: {:?}", world.wrong);
        prop_assert!(world.pending.is_empty(), "no answer: {:?}", world.pending);
        Ok(())
    }

    fn change(&mut self, change: usize) {
        let [indirect, direct, browse] = &self.maps;
        let (mut a, mut b, mut c) =
            (indirect.0.lock().unwrap(), direct.0.lock().unwrap(), browse.0.lock().unwrap());
        CHANGES[change](&mut a, &mut b, &mut c);
    }

    fn restore_maps(&mut self) {
        *self.masters.1.lock().unwrap() = USUAL.into();
        for (map, entries) in self.maps.iter().zip([indirect_map(), direct_map(), browse_map()]) {
            let entries = entries.into_iter().map(|(key, entry)| (key.as_bytes().to_vec(), entry));
            *map.0.lock().unwrap() = entries.collect();
        }
    }

    /// What is mounted where, `autofs` or not; and all names.
    fn snapshot(&self) -> (BTreeSet<(PathBuf, bool)>, BTreeSet<PathBuf>) {
        let world = self.kernel.world();
        let mounts = world.mounts.iter().map(|mount| (mount.path.clone(), mount.autofs.is_some())).collect();
        (mounts, world.names.keys().map(|(_, path)| path.clone()).collect())
    }
}

// Events in any order

#[derive(Clone, Debug)]
enum Step {
    Visit(usize),
    Work(usize, usize),
    Pass(u64),
    ExpireNow,
    Slow(bool),
    Use(usize),
    UseElsewhere(usize),
    Leave(usize),
    Break(usize),
    Mend(usize),
    Yank(usize),
    Change(usize),
    /// The master map has a map, or has it no more.
    Master(usize, bool),
    Restore,
    Reload,
    Upgrade,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    let path = 0..PATHS.len();
    let calls = prop_oneof![Just(1), Just(2), Just(4), Just(usize::MAX)];
    prop_oneof![
        8 => path.clone().prop_map(Step::Visit),
        16 => (0usize..3, calls).prop_map(|(at, calls)| Step::Work(at, calls)),
        3 => prop_oneof![Just(1u64), Just(11), Just(61)].prop_map(Step::Pass),
        3 => Just(Step::ExpireNow),
        1 => any::<bool>().prop_map(Step::Slow),
        1 => path.clone().prop_map(Step::Use),
        1 => path.clone().prop_map(Step::UseElsewhere),
        1 => path.clone().prop_map(Step::Leave),
        1 => path.clone().prop_map(Step::Break),
        1 => path.clone().prop_map(Step::Mend),
        1 => path.prop_map(Step::Yank),
        1 => (0..CHANGES.len()).prop_map(Step::Change),
        1 => (0..USUAL.len(), any::<bool>()).prop_map(|(at, on)| Step::Master(at, on)),
        1 => Just(Step::Restore),
        2 => Just(Step::Reload),
        2 => Just(Step::Upgrade),
    ]
}

/// Many of them.
fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..most)
}

fn play(bench: &mut Bench, step: &Step) {
    let path = |at: usize| PathBuf::from(PATHS[at]);
    match *step {
        Step::Visit(at) => bench.visit(PATHS[at]),
        Step::Work(at, calls) => bench.work(at, calls),
        Step::Pass(seconds) => bench.pass(seconds),
        Step::ExpireNow => bench.event(Event::ExpireNow(None)),
        Step::Slow(slow) => bench.slow = slow,
        Step::Use(at) => _ = bench.kernel.world().used.insert(path(at)),
        Step::UseElsewhere(at) => _ = bench.kernel.world().used_elsewhere.insert(path(at)),
        Step::Leave(at) => {
            let mut world = bench.kernel.world();
            world.used.remove(&path(at));
            world.used_elsewhere.remove(&path(at));
        }
        Step::Break(at) => _ = bench.kernel.world().broken.insert(path(at)),
        Step::Mend(at) => _ = bench.kernel.world().broken.remove(&path(at)),
        // somebody else unmounts; not the triggers of direct maps, which only a new engine would make again
        Step::Yank(at) => {
            let mut world = bench.kernel.world();
            if world.top(&path(at)).is_some_and(|top| top.autofs != Some(MountType::Direct)) {
                let _ = world.unmount(&path(at));
            }
        }
        Step::Change(change) => bench.change(change),
        Step::Master(at, on) => bench.masters.1.lock().unwrap()[at] = on,
        Step::Restore => bench.restore_maps(),
        Step::Reload => bench.event(Event::Reload),
        Step::Upgrade => bench.event(Event::Leave),
        Step::Stop => bench.event(Event::Stop),
    }
    bench.pump();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_exactly_once(
        steps in steps(60),
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
        steps in steps(40),
    ) {
        let mut bench = Bench::new();
        let fresh = bench.snapshot();
        for step in &steps {
            play(&mut bench, step);
        }
        {
            let mut world = bench.kernel.world();
            world.used.clear();
            world.used_elsewhere.clear();
            world.broken.clear();
        }
        bench.restore_maps();
        bench.settle()?;
        for round in 0..6 {
            bench.event(Event::Reload);
            bench.settle()?;
            // directories whose mounts somebody else took away stay until they are used again
            for path in PATHS.iter().filter(|_| round < 3) {
                bench.visit(path);
                bench.settle()?;
            }
            bench.expire_now();
            bench.settle()?;
            bench.pass(120);
            bench.settle()?;
        }
        prop_assert_eq!(bench.snapshot(), fresh);
        for path in [
            "/i/plain", "/i/multi/a/b", "/i/rooted/s", "/i/strict/a", "/i/sub/in/x", "/d/one", "/d/two/x", "/b/dir",
        ] {
            bench.visit(path);
            bench.settle()?;
            let world = bench.kernel.world();
            let top = world.top(Path::new(path));
            prop_assert!(top.is_some_and(|top| top.autofs.is_none()), "{} is not mounted", path);
        }
    }
}

/// CRIU has restored the engine, and its mounts as new ones.
#[test]
fn a_mount_that_was_made_again_is_served() {
    let place = |minor, ino| Place {
        dirs: 0,
        path: Path::new("/i").into(),
        dev: DevNum::anonymous(minor),
        ino: NonZeroU64::new(ino),
        kind: MountType::Indirect,
    };
    let packet = |place: &Place| Packet {
        kind: crate::sys::packet::Kind::MissingIndirect,
        token: Token(1),
        dev: place.dev,
        ino: place.ino.unwrap().get(),
        uid: 0,
        gid: 0,
        pid: 1,
        tgid: 1,
        name: format!("{:?}", place.ino).into_bytes(),
    };
    let table = table(&[]);
    let mut state = State::new(Limits::default());
    let group = state.add_group(Arc::new(served(Some("/i".as_ref()), &table, ServeOptions::default())));
    state.add_mount(group, Arc::new(place(40, 1))).unwrap();
    for now in [place(41, 2), place(42, 3), place(42, 4)] {
        let mut out = Out::new();
        state.step(Event::Packet(packet(&now)), Instant::now(), &mut out);
        assert!(matches!(out[..], [Action::Unknown(_)]), "{out:?}");
        assert!(!state.moved(Place { path: Path::new("/other").into(), ..now.clone() }));
        assert!(state.moved(now.clone()));
        let mut out = Out::new();
        state.step(Event::Packet(packet(&now)), Instant::now(), &mut out);
        let [Action::Run(job, Task::Mount(task))] = &out[..] else { panic!("{out:?}") };
        assert_eq!(*task.place, now);
        let refused = Outcome::Mounted { result: Err(Errno::NOENT), children: Vec::new(), left: false };
        state.step(Event::Done(*job, refused), Instant::now(), &mut Out::new());
    }
}
