//! What a container of this scenario is made of: a small root file system with real automount, our engine, and
//! programs that use both.

use crate::check::HANG_LIMIT;
use crate::process::run_ok;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Each holds a file of its own name.
pub const KEYS: &[&str] = &["a", "b", "c", "d", "e", "f", "g", "h"];

/// Real programs, with the libraries that they load; busybox is the rest of the system. (Its sleep would end when CRIU
/// interrupts it.)
const PROGRAMS: &[&str] =
    &["/usr/sbin/automount", "/usr/bin/mount", "/usr/bin/umount", "/usr/bin/sleep", "/usr/bin/busybox"];
const APPLETS: &[&str] = &["sh", "cat", "grep", "kill", "ls", "readlink", "setsid"];

const ETC: &[(&str, &str)] = &[
    ("auto.master", "/ind /etc/auto.key --timeout=600\n"),
    ("engine.master", "/our /etc/auto.key --timeout=600\n/- /etc/auto.direct --timeout=600\n"),
    ("auto.key", "* -fstype=bind :/srv/data/&\n"),
    ("auto.direct", "/direct/one -fstype=bind :/srv/data/a\n/direct/two -fstype=bind :/srv/data/b\n"),
    ("nsswitch.conf", "passwd: files\ngroup: files\nautomount: files\n"),
    ("passwd", "root:x:0:0:root:/:/bin/sh\n"),
    ("group", "root:x:0:\n"),
];

/// PID 1 of the container: starts real automount and our engine, a program that reads from their mounts all the
/// time, and programs whose working directories are inside.
const START: &str = r#"#!/bin/sh
setsid automount --foreground --dont-check-daemon </dev/null >/dev/null 2>&1 &
setsid autofs-cr automount /etc/engine.master </dev/null >/tmp/engine.log 2>&1 &
for path in /ind /our /direct/one /direct/two; do
    until grep -q " $path .* - autofs " /proc/self/mountinfo; do sleep 0.1; done
done
ls /ind/a /our/a >/dev/null
setsid scenarios walk /ind/a/a /our/a/a </dev/null >/tmp/walked 2>&1 &
echo $! >/tmp/walker
for path in /ind/b /our/b /direct/one; do
    (cd $path && exec /usr/bin/sleep 100000) &
    echo $! $path >>/tmp/sitters
done
echo ready >/tmp/ready
exec /usr/bin/sleep 100000
"#;

/// Make the root file system below `root`.
pub fn make_root(root: &Path) -> Result<()> {
    let own = std::env::current_exe()?;
    let ours = [own.clone(), own.with_file_name("autofs-cr")];
    let modules = "/usr/lib/x86_64-linux-gnu/autofs";
    for dir in ["dev", "etc", "proc", "run", "sys", "tmp", "var/lib"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(dir))?;
        symlink(format!("usr/{dir}"), root.join(dir))?;
    }
    let mut needed: BTreeSet<String> = PROGRAMS.iter().map(|&program| program.to_owned()).collect();
    for entry in fs::read_dir(modules).with_context(|| modules.to_owned())? {
        needed.insert(entry?.path().to_string_lossy().into_owned());
    }
    let loaded: Vec<String> =
        needed.iter().cloned().chain(ours.iter().map(|path| path.to_string_lossy().into_owned())).collect();
    needed.extend(libraries(&loaded)?);
    for file in &needed {
        let place = root.join(file.trim_start_matches('/'));
        place.parent().map(fs::create_dir_all).transpose()?;
        fs::copy(file, &place).with_context(|| file.clone())?;
    }
    for program in &ours {
        let name = program.file_name().context("a program without a name")?;
        fs::copy(program, root.join("usr/bin").join(name)).with_context(|| program.display().to_string())?;
    }
    for applet in APPLETS {
        symlink("busybox", root.join("usr/bin").join(applet))?;
    }
    make_content(root)
}

/// What is not a program: maps, keys and `/start`.
pub fn make_content(root: &Path) -> Result<()> {
    for dir in ["direct", "ind", "our", "srv/data"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for key in KEYS {
        fs::create_dir_all(root.join("srv/data").join(key))?;
        fs::write(root.join("srv/data").join(key).join(key), key)?;
    }
    for (name, text) in ETC {
        fs::write(root.join("etc").join(name), text)?;
    }
    fs::write(root.join("start"), START)?;
    Ok(fs::set_permissions(root.join("start"), fs::Permissions::from_mode(0o755))?)
}

/// Every library that `programs` load, as ldd finds them.
fn libraries(programs: &[String]) -> Result<BTreeSet<String>> {
    let programs: Vec<&str> = programs.iter().map(String::as_str).collect();
    // Its status tells of static programs, too.
    let told = crate::process::run(HANG_LIMIT, "ldd", &programs)?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let paths = told.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    Ok(paths.filter(|path| Path::new(path).exists()).map(str::to_owned).collect())
}

/// What runc and crun run: their own `spec`, with what automount needs added.
pub fn make_bundle(runtime: &str, bundle: &Path) -> Result<()> {
    make_root(&bundle.join("rootfs"))?;
    run_ok(HANG_LIMIT, runtime, &["spec", "--bundle", &bundle.to_string_lossy()])?;
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let capabilities = json!(["CAP_SYS_ADMIN", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"]);
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/start"]);
    config["process"]["rlimits"] = json!([]);
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = capabilities.clone();
    }
    if let Some(sets) = config["process"]["capabilities"].as_object_mut() {
        sets.remove("ambient");
    }
    config["root"]["readonly"] = json!(false);
    config["linux"]["devices"] = json!([{"path": "/dev/autofs", "type": "c", "major": 10, "minor": 235}]);
    config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    Ok(fs::write(&file, config.to_string())?)
}
