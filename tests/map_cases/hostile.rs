//! Maps that somebody wrote to do harm: they cost a little time and memory, and no more.

use crate::common::{Opened, Setup};
use autofs_cr::engine::maps::Site;
use autofs_cr::engine::maps::check::{FileKind, check};
use autofs_cr::engine::maps::master::{Files, MapName, read};
use autofs_cr::engine::maps::source::FILE_MAX;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No map takes longer to be refused, on a busy machine. (Each of these takes a second at most; without its limit for ever.)
const SOON: Duration = Duration::from_secs(120);

fn soon<T>(what: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = what();
    assert!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    result
}

fn refusal(path: &Path) -> String {
    let found = soon(|| check(path, FileKind::Indirect, &Arc::new(Site::default())));
    found.unwrap().into_iter().map(|(_, warning)| warning.message).collect()
}

#[test]
fn a_file_that_never_ends() {
    let refused = refusal(Path::new("/dev/zero"));
    assert!(refused.contains("it is not a regular file"), "{refused}");
    let master = soon(|| read(&MapName::file("/dev/zero"), &Files::default()));
    assert!(master.unwrap_err().to_string().contains("it is not a regular file"));
    assert_eq!(refusal(Path::new("/dev/null")), "");
}

#[test]
fn a_pipe_that_nobody_writes_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("map");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _ = soon(|| read(&MapName::file(&path), &Files::default()));
}

#[test]
fn a_file_that_is_too_large() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(FILE_MAX + 1).unwrap();
    let refused = refusal(file.path());
    assert!(refused.contains(&format!("more than {FILE_MAX} bytes")), "{refused}");
}

#[test]
fn a_line_of_a_hundred_megabytes() {
    let long = "x".repeat(100 << 20);
    let opened = soon(|| Setup::default().open(&format!("a server:/a\nlong server:/{long}\nz server:/z\n")));
    assert_eq!(opened.lookup("long"), "ENOENT");
    assert_eq!(opened.lookup("z"), "-t nfs server:/z");
    assert_eq!(opened.warnings().len(), 1);
}

/// Ten files, each of which includes all ten: without a limit there were more than 10! readings.
#[test]
fn files_that_include_each_other() {
    let names: Vec<String> = (0..10).map(|n| format!("inc{n}")).collect();
    let all: String = names.iter().map(|name| format!("+@/{name}\n")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), all.as_str())).collect();
    let opened = soon(|| Setup { files: &files, ..Setup::default() }.open(&format!("{all}k server:/k\n")));
    assert_eq!(opened.lookup("k"), "-t nfs server:/k");
    assert!(opened.warnings().iter().any(|warning| warning.contains("1024 were read")));
}

#[test]
fn master_maps_that_include_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = |n: usize| directory.path().join(format!("auto.{n}"));
    let all: String = (0..10).map(|n| format!("+{}\n", path(n).display())).collect();
    (0..10).for_each(|n| std::fs::write(path(n), format!("{all}/m{n} /etc/map\n")).unwrap());
    let master = soon(|| read(&MapName::file(path(0)), &Files::default())).unwrap();
    assert_eq!(master.entries.len(), 10);
    assert!(master.warnings.iter().any(|(_, warning)| warning.message.contains("1024 files were read")));
}

#[test]
fn a_key_and_variables_put_in_very_often() {
    let definition = format!("-DX={}", "v".repeat(8000));
    let setup = Setup { options: &definition, ..Setup::default() };
    let line = |name: &str, part: &str| format!("{name} server:/{}\n", part.repeat(16_000 / part.len()));
    let opened = setup.open(&(line("variable", "$X") + &line("key", "&") + &line("few", "&")[..40]));
    let refused = soon(|| opened.lookup("variable"));
    assert!(refused.contains("grows too much"), "{refused}");
    let long = "k".repeat(255);
    let opened = Setup::default().open(&format!("* server:/{}\n", "&".repeat(16_000)));
    let refused = soon(|| opened.lookup(&long));
    assert!(refused.contains("grows too much"), "{refused}");
}

#[test]
fn an_entry_with_thousands_of_offsets() {
    let offsets: String = (0..1500).map(|n| format!("/{n} s:/ ")).collect();
    let opened = Setup::default().open(&format!("k {offsets}\n"));
    assert_eq!(soon(|| opened.lookup("k")).matches("; ").count(), 1499);
}

fn amd(text: &str) -> Opened {
    Setup { kind: "file,amd:", ..Setup::default() }.open(text)
}

/// Eight options, each of which has the next one hundreds of times.
#[test]
fn amd_options_that_grow_by_each_other() {
    let names = ["fs", "dev", "opts", "sublink", "pref", "rfs", "rhost"];
    for last in ["x", "${/dollar}"] {
        let chain =
            names.windows(2).map(|pair| format!("{}:={}", pair[0], format!("${{{}}}", pair[1]).repeat(200)));
        let chain: Vec<String> = chain.chain([format!("rhost:={last}")]).collect();
        let opened = amd(&format!("k type:=link;{}\n", chain.join(";")));
        let refused = soon(|| opened.lookup("k"));
        assert!(refused.contains("grows too much"), "{last}: {refused:.200}");
    }
}

#[test]
fn amd_options_that_need_themselves() {
    let refused = soon(|| amd("k type:=link;fs:=${rfs}${rfs};rfs:=${fs}${fs}\n").lookup("k"));
    assert!(refused.contains("needs its own value"), "{refused}");
}

#[test]
fn an_amd_entry_with_thousands_of_locations() {
    let opened = amd(&format!("/defaults type:=link\nk {}\n", "fs:=/a ".repeat(2000)));
    assert_eq!(soon(|| opened.lookup("k")).matches(" || ").count(), 1999);
}

/// Neither a descriptor that whoever started us had left open, nor our environment.
#[test]
fn a_program_finds_nothing_of_the_engine() {
    let held = tempfile::NamedTempFile::new().unwrap();
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
    let setup = Setup { program: true, mount_point: "/nowhere", ..Setup::default() };
    let script = "#!/bin/sh\necho s:/$(ls -l /proc/$$/fd | grep -c HELD)/$(env | cut -d= -f1 | tr '\\n' .)\n";
    let found = setup.open(&script.replace("HELD", held.path().to_str().unwrap())).lookup("k");
    let environment = found.strip_prefix("-t nfs s:/0/").unwrap_or_else(|| panic!("{found}"));
    let ours: Vec<&str> = environment.split('.').collect();
    assert!(
        std::env::vars().any(|(name, _)| name == "CARGO_MANIFEST_DIR")
            && !ours.contains(&"CARGO_MANIFEST_DIR")
    );
    assert!(ours.contains(&"AUTOFS_UID") && !ours.contains(&"HOME"), "{environment}");
}
