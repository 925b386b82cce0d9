//! Single cases, told step by step.

use super::*;

fn mounted(bench: &Bench, path: &str) -> bool {
    bench.kernel.world().top(Path::new(path)).is_some_and(|top| top.autofs.is_none())
}

fn exists(bench: &Bench, path: &str) -> bool {
    bench.kernel.world().top(Path::new(path)).is_some()
}

/// Visit, and let everything run to its end.
fn arrive(bench: &mut Bench, path: &str) {
    bench.visit(path);
    bench.settle().unwrap();
}

fn last_answer(bench: &Bench) -> Result<(), Errno> {
    *bench.kernel.world().answers.last_key_value().unwrap().1
}

#[test]
fn a_visitor_that_comes_while_its_mount_expires_gets_it_back() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/plain");
    bench.expire_now();
    bench.work(0, 2);
    bench.visit("/i/plain");
    assert_eq!(bench.visits.len(), 1);
    bench.settle().unwrap();
    assert!(mounted(&bench, "/i/plain"));
}

/// Whoever waited for it may look for it only now.
#[test]
fn the_directory_of_a_key_stays_for_a_moment_after_it_was_mounted() {
    let mut bench = Bench::new();
    let there = |bench: &Bench| bench.snapshot().1.contains(Path::new("/i/plain"));
    for path in ["/i/plain", "/i/link"] {
        arrive(&mut bench, path);
    }
    bench.expire_now();
    bench.settle().unwrap();
    assert!(!mounted(&bench, "/i/plain") && there(&bench));
    bench.pass(1);
    arrive(&mut bench, "/i/plain");
    assert!(mounted(&bench, "/i/plain"));
    bench.expire_now();
    bench.settle().unwrap();
    // the first one's time is over, the second one's not
    bench.pass(4);
    bench.settle().unwrap();
    assert!(!mounted(&bench, "/i/plain") && there(&bench));
    bench.pass(2);
    bench.settle().unwrap();
    assert!(bench.snapshot().1.iter().all(|name| name.parent() != Some(Path::new("/i"))));
}

#[test]
fn a_directory_that_an_earlier_engine_left_goes() {
    let mut bench = Bench::new();
    let root = bench.state.find(bench.kernel.world().autofs_places()[0].dev).unwrap();
    bench.kernel.make_dir(Path::new("/i/plain"), 0).unwrap();
    bench.state.add_left(root, b"plain".to_vec(), bench.now);
    bench.pass(11);
    bench.settle().unwrap();
    assert!(!bench.snapshot().1.contains(Path::new("/i/plain")));
}

#[test]
fn an_entry_that_went_while_its_mount_expired_is_answered() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/plain");
    bench.expire_now();
    bench.work(0, 2);
    bench.change(0);
    bench.event(Event::Reload);
    bench.visit("/i/plain");
    bench.settle().unwrap();
    assert_eq!(last_answer(&bench), Err(Errno::NOENT));
    assert!(!exists(&bench, "/i/plain"));
}

#[test]
fn a_late_lookup_is_answered_and_what_it_mounts_expires() {
    let mut bench = Bench::new();
    bench.visit("/i/plain");
    bench.work(0, 1);
    bench.pass(60);
    assert_eq!((bench.visits.len(), last_answer(&bench)), (0, Err(Errno::TIMEDOUT)));
    // the job holds its key only
    bench.visit("/i/plain");
    assert_eq!((bench.visits.len(), last_answer(&bench)), (0, Err(Errno::TIMEDOUT)));
    bench.visit("/i/rooted");
    bench.work(1, usize::MAX);
    assert!(mounted(&bench, "/i/rooted") && !mounted(&bench, "/i/plain"));
    bench.settle().unwrap();
    assert!(mounted(&bench, "/i/plain"));
    bench.expire_now();
    bench.settle().unwrap();
    assert!(!exists(&bench, "/i/plain"));
}

#[test]
fn a_failed_lookup_is_remembered_for_a_while() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/absent");
    bench.visit("/i/absent");
    assert_eq!((bench.jobs.len(), last_answer(&bench)), (0, Err(Errno::NOENT)));
    bench.pass(60);
    bench.visit("/i/absent");
    assert_eq!(bench.jobs.len(), 1);
}

#[test]
fn a_part_that_cannot_be_made_fails_a_strict_entry_only() {
    let mut bench = Bench::new();
    for path in ["/i/multi/c", "/i/strict/c"] {
        bench.kernel.world().broken.insert(path.into());
    }
    arrive(&mut bench, "/i/multi/a");
    assert!(mounted(&bench, "/i/multi/a") && !exists(&bench, "/i/multi/c"));
    // what is made instead of a strict entry that fails, and nothing of the entry
    arrive(&mut bench, "/i/strict");
    assert!(mounted(&bench, "/i/strict") && !exists(&bench, "/i/strict/a"));
}

#[test]
fn a_strict_entry_that_fails_leaves_nothing() {
    let mut bench = Bench::new();
    let fresh = bench.snapshot();
    bench.maps[0].0.lock().unwrap().get_mut(&b"strict"[..]).unwrap().otherwise = None;
    bench.kernel.world().broken.insert("/i/strict/c".into());
    arrive(&mut bench, "/i/strict/a");
    assert_eq!(last_answer(&bench), Err(Errno::NOSPC));
    assert_eq!(bench.snapshot(), fresh);
}

#[test]
fn what_stays_of_a_failed_lookup_expires() {
    let mut bench = Bench::new();
    let fresh = bench.snapshot();
    bench.kernel.world().broken.insert("/d/two/x".into());
    bench.kernel.world().used_elsewhere.insert("/d/two".into());
    arrive(&mut bench, "/d/two");
    assert!(last_answer(&bench).is_err() && mounted(&bench, "/d/two"));
    bench.kernel.world().used_elsewhere.clear();
    bench.expire_now();
    bench.settle().unwrap();
    assert_eq!(bench.snapshot(), fresh);
}

#[test]
fn a_partial_expire_leaves_no_dead_trigger() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/multi/a");
    arrive(&mut bench, "/i/multi/c");
    bench.expire_now();
    // the kernel found all of it idle; now somebody enters one part
    while mounted(&bench, "/i/multi/a") {
        bench.work(0, 1);
    }
    bench.kernel.world().used.insert("/i/multi/c".into());
    bench.settle().unwrap();
    assert!(exists(&bench, "/i/multi/a") && mounted(&bench, "/i/multi/c"));
    arrive(&mut bench, "/i/multi/a/b");
    assert!(mounted(&bench, "/i/multi/a/b"));
}

#[test]
fn reload_follows_a_direct_map() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/d/one");
    bench.change(3);
    bench.change(4);
    bench.event(Event::Reload);
    bench.settle().unwrap();
    arrive(&mut bench, "/d/new");
    assert!(mounted(&bench, "/d/new"));
    // a trigger without a key stays as long as its mount, and answers
    assert!(mounted(&bench, "/d/one"));
    bench.expire_now();
    bench.settle().unwrap();
    assert!(!exists(&bench, "/d/one"));
}

#[test]
fn offsets_of_a_mounted_key_follow_its_entry() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/multi/a/b");
    // a, a/b and c become a/b and d
    bench.change(1);
    bench.event(Event::Reload);
    bench.settle().unwrap();
    assert!(mounted(&bench, "/i/multi/a/b") && mounted(&bench, "/i/multi/a"), "what is in use stays");
    assert!(!exists(&bench, "/i/multi/c"));
    arrive(&mut bench, "/i/multi/d");
    assert!(mounted(&bench, "/i/multi/d"));
    bench.expire_now();
    bench.settle().unwrap();
    assert!(!exists(&bench, "/i/multi"));
    arrive(&mut bench, "/i/multi/a/b");
    assert!(mounted(&bench, "/i/multi/a/b") && !exists(&bench, "/i/multi/a"));
}

#[test]
fn who_asks_while_offsets_follow_is_answered() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/multi/c");
    bench.change(1);
    bench.event(Event::Reload);
    // the maps are read, and the offsets begin to follow
    while !bench.jobs.iter().any(|job| matches!(*job.task, Task::Follow(_))) {
        bench.work(0, 1);
    }
    bench.visit("/i/multi/a");
    bench.visit("/i/multi/c");
    bench.settle().unwrap();
    assert!(bench.visits.is_empty());
    assert!(mounted(&bench, "/i/multi/c"), "what is in use stays");
}

#[test]
fn a_trigger_that_is_wanted_again_while_it_goes_comes_back() {
    let mut bench = Bench::new();
    bench.change(3);
    bench.event(Event::Reload);
    while exists(&bench, "/d/one") {
        bench.work(0, 1);
    }
    bench.restore_maps();
    bench.event(Event::Reload);
    bench.settle().unwrap();
    arrive(&mut bench, "/d/one");
    assert!(mounted(&bench, "/d/one"));
}

#[test]
fn a_link_of_a_browsed_map_follows_its_map() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/b/link");
    bench.change(6);
    bench.event(Event::Reload);
    bench.expire_now();
    bench.settle().unwrap();
    arrive(&mut bench, "/b/link");
    assert!(mounted(&bench, "/b/link"));
}

#[test]
fn a_reload_takes_no_directory_away_that_a_job_mounts_on() {
    for calls in 1..10 {
        let mut bench = Bench::new();
        bench.visit("/b/dir");
        bench.work(0, calls);
        // the map does not list it any more, and is read while the job goes on
        bench.change(5);
        bench.event(Event::Reload);
        while bench.jobs.len() > 1 {
            bench.work(1, usize::MAX);
        }
        bench.settle().unwrap();
        assert!(last_answer(&bench) == Ok(()) && mounted(&bench, "/b/dir"), "{calls}");
    }
    let mut bench = Bench::new();
    bench.change(5);
    reload(&mut bench);
    assert!(!bench.snapshot().1.contains(Path::new("/b/dir")));
}

#[test]
fn a_key_that_cannot_be_unmounted_does_not_keep_the_others() {
    let mut bench = Bench::new();
    for path in ["/i/plain", "/i/rooted", "/i/multi/a"] {
        arrive(&mut bench, path);
    }
    // the kernel finds it idle, and first of all
    bench.kernel.world().used_elsewhere.insert("/i/multi/a".into());
    bench.expire_now();
    assert!(bench.state.is_expiring());
    bench.settle().unwrap();
    assert!(!bench.state.is_expiring());
    assert!(mounted(&bench, "/i/multi/a") && !exists(&bench, "/i/plain") && !exists(&bench, "/i/rooted"));
}

#[test]
fn a_submount_goes_when_it_is_empty() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/sub/in/x");
    bench.expire_now();
    bench.settle().unwrap();
    assert!(!exists(&bench, "/i/sub/in"));
    bench.pass(40);
    bench.settle().unwrap();
    assert!(!exists(&bench, "/i/sub"));
}

#[test]
fn stop_unmounts_what_is_idle_and_answers_who_comes_late() {
    let mut bench = Bench::new();
    for path in ["/i/plain", "/i/sub/in/x", "/d/two/x"] {
        arrive(&mut bench, path);
    }
    bench.kernel.world().used.insert("/i/plain".into());
    bench.visit("/i/rooted");
    bench.event(Event::Stop);
    bench.visit("/d/one");
    assert_eq!(last_answer(&bench), Err(Errno::HOSTDOWN));
    bench.settle().unwrap();
    assert!(bench.exited && mounted(&bench, "/i/plain"));
    let world = bench.kernel.world();
    let left: Vec<_> = world.mounts.iter().map(|mount| mount.path.to_str().unwrap()).collect();
    assert_eq!(left, ["/i", "/i/plain"]);
}

#[test]
fn a_second_stop_does_not_wait() {
    let mut bench = Bench::new();
    bench.visit("/i/plain");
    bench.event(Event::Stop);
    assert!(!bench.exited);
    bench.event(Event::Stop);
    bench.event(Event::Stop);
    assert!(bench.exited);
    bench.settle().unwrap();
}

fn reload(bench: &mut Bench) {
    bench.event(Event::Reload);
    bench.settle().unwrap();
}

#[test]
fn a_mounted_key_that_moves_to_another_map_stays() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/d/one");
    bench.kernel.world().used.insert("/d/one".into());
    bench.change(3);
    bench.masters.1.lock().unwrap()[3] = true;
    reload(&mut bench);
    assert!(mounted(&bench, "/d/one") && exists(&bench, "/d/other"));
    // what it is from now on the other map says
    bench.kernel.world().used.clear();
    bench.expire_now();
    bench.settle().unwrap();
    arrive(&mut bench, "/d/one/x");
    assert!(mounted(&bench, "/d/one/x"));
}

#[test]
fn maps_come_and_go_with_the_master_map() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/i/plain");
    bench.kernel.world().used.insert("/i/plain".into());
    *bench.masters.1.lock().unwrap() = vec![false, false, false, true];
    reload(&mut bench);
    assert!(!exists(&bench, "/b") && !exists(&bench, "/d/two") && exists(&bench, "/d/one"));
    // it answers as long as it is in use
    arrive(&mut bench, "/i/rooted");
    assert!(mounted(&bench, "/i/rooted"));
    bench.kernel.world().used.clear();
    bench.expire_now();
    bench.settle().unwrap();
    assert!(!exists(&bench, "/i"));
    bench.restore_maps();
    reload(&mut bench);
    for path in ["/i/plain", "/b/dir", "/d/two/x"] {
        arrive(&mut bench, path);
        assert!(mounted(&bench, path), "{path}");
    }
}

#[test]
fn a_key_that_becomes_a_directory_of_keys_makes_room_first() {
    let mut bench = Bench::new();
    arrive(&mut bench, "/d/one");
    bench.kernel.world().used.insert("/d/one".into());
    {
        let mut direct = bench.maps[1].0.lock().unwrap();
        direct.remove(&b"/d/one"[..]);
        direct.insert(b"/d/one/a".to_vec(), entry(&[""]));
        direct.remove(&b"/d/two"[..]);
        direct.insert(b"/d/two/b".to_vec(), entry(&[""]));
    }
    reload(&mut bench);
    // not inside of what is mounted there
    assert!(mounted(&bench, "/d/one") && !exists(&bench, "/d/one/a") && exists(&bench, "/d/two/b"));
    bench.kernel.world().used.clear();
    bench.expire_now();
    bench.settle().unwrap();
    assert!(!exists(&bench, "/d/one") && exists(&bench, "/d/one/a"));
    arrive(&mut bench, "/d/one/a");
    assert!(mounted(&bench, "/d/one/a"));
}

/// Each in a job of its own, and the other one's ends first.
#[test]
fn a_key_does_not_take_the_room_that_another_job_makes() {
    let mut bench = Bench::new();
    for path in ["/d/one", "/d/two/x"] {
        arrive(&mut bench, path);
        bench.kernel.world().used.insert(path.into());
    }
    {
        let mut direct = bench.maps[1].0.lock().unwrap();
        direct.clear();
        direct.insert(b"/d/one/a".to_vec(), entry(&[""]));
    }
    reload(&mut bench);
    bench.kernel.world().used.clear();
    bench.event(Event::ExpireNow(None));
    bench.pump();
    while exists(&bench, "/d/one") && mounted(&bench, "/d/one") || exists(&bench, "/d/two/x") {
        bench.work(0, 1);
    }
    bench.settle().unwrap();
    assert!(!exists(&bench, "/d/one") && !exists(&bench, "/d/two"));
    let world = bench.kernel.world();
    assert!(world.top(Path::new("/d/one/a")).is_some_and(|top| top.autofs == Some(MountType::Direct)));
}

#[test]
fn what_could_not_be_made_is_tried_again() {
    let mut bench = Bench::new();
    bench.change(4);
    bench.kernel.world().broken.insert("/d/new".into());
    reload(&mut bench);
    assert!(!exists(&bench, "/d/new"));
    bench.kernel.world().broken.clear();
    reload(&mut bench);
    assert!(exists(&bench, "/d/new"));
}

/// Numbers of mounts are used again at once.
#[test]
fn a_packet_waits_for_its_mount_when_its_number_was_another_ones() {
    let mut bench = Bench::new();
    bench.change(3);
    bench.change(4);
    bench.event(Event::Reload);
    (0..3).for_each(|_| bench.work(0, usize::MAX));
    while exists(&bench, "/d/one") {
        bench.work(0, 1);
    }
    // that has not been reported when another trigger has the number, and a visitor, who is faster than the report
    bench.slow = true;
    bench.visit("/i/multi/a");
    bench.work(1, usize::MAX);
    bench.settle().unwrap();
    assert!(mounted(&bench, "/i/multi/a") && !exists(&bench, "/d/one"));
}

#[test]
fn a_report_of_a_mount_that_is_gone_does_not_take_another_ones_place() {
    let mut bench = Bench::new();
    for path in ["/i/multi", "/i/strict/a"] {
        bench.visit(path);
    }
    while !exists(&bench, "/i/strict/a") {
        bench.work(1, 1);
    }
    // somebody unmounts the offset, its number is that of another one next, and then its job reports it
    bench.kernel.world().unmount(Path::new("/i/strict/a")).unwrap();
    bench.settle().unwrap();
    for _ in 0..3 {
        bench.expire_now();
        bench.settle().unwrap();
        bench.pass(120);
        bench.settle().unwrap();
    }
    assert!(!exists(&bench, "/i/multi/a") && !exists(&bench, "/i/strict/c"));
}

#[test]
fn a_map_that_is_read_late_does_not_end_the_next_reload() {
    let mut bench = Bench::new();
    let before = bench.snapshot();
    bench.visit("/i/plain");
    bench.event(Event::Reload);
    play(&mut bench, &Step::Master(0, false));
    bench.work(1, 1);
    bench.pass(61);
    bench.event(Event::Reload);
    bench.restore_maps();
    bench.settle().unwrap();
    for _ in 0..3 {
        bench.expire_now();
        bench.settle().unwrap();
        bench.pass(120);
        bench.settle().unwrap();
    }
    assert_eq!(bench.snapshot(), before);
}
