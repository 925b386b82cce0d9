//! The processes of a container, by the numbers that it uses itself.

use crate::discover::proc::TaskDir;
use std::collections::HashMap;

/// A process of the container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its number here.
    pub pid: i32,
    /// Its number in the container's pid namespace.
    pub inner: i32,
    /// Its process group there; 0 when the group comes from outside.
    pub inner_group: i32,
    /// Inode of its mount namespace.
    pub mount_namespace: u64,
}

/// A process and all its descendants, parents first.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The root first.
    pub members: Vec<Member>,
    by_pid: HashMap<i32, usize>,
}

impl Tree {
    /// The tree below `root`. Only what does not run is sure to be in it: let it be stopped.
    pub fn of(root: i32) -> Self {
        let mut tree = Self::default();
        // The container's pid namespace is that of its root, so many namespaces down from ours.
        let Some(level) =
            TaskDir::process(root).ok().and_then(|dir| Some(numbers(&status(&dir)?, "NSpid:")?.len() - 1))
        else {
            return tree;
        };
        let mut next = vec![root];
        while let Some(pid) = next.pop() {
            let Ok(dir) = TaskDir::process(pid) else { continue };
            if let Some(member) = Member::read(&dir, level) {
                tree.by_pid.insert(pid, tree.members.len());
                tree.members.push(member);
                next.extend(children(&dir));
            }
        }
        tree
    }

    /// The member that has this number here.
    pub fn by_pid(&self, pid: i32) -> Option<&Member> {
        self.by_pid.get(&pid).map(|&index| &self.members[index])
    }

    /// The member that has this number in the container.
    pub fn by_inner(&self, inner: i32) -> Option<&Member> {
        self.members.iter().find(|member| member.inner == inner)
    }

    /// As [`Tree::mount_namespaces`]; none where the root shares ours: then CRIU dumps no mounts.
    pub fn own_mount_namespaces(&self) -> Vec<&Member> {
        let ours = TaskDir::process(rustix::process::getpid().as_raw_nonzero().get());
        let ours = ours.ok().and_then(|dir| dir.namespace("mnt"));
        match self.members.first() {
            Some(root) if Some(root.mount_namespace) == ours => Vec::new(),
            _ => self.mount_namespaces(),
        }
    }

    /// One member for each mount namespace.
    pub fn mount_namespaces(&self) -> Vec<&Member> {
        let mut seen = Vec::new();
        let mut new = |member: &&Member| {
            let new = !seen.contains(&member.mount_namespace);
            seen.extend(new.then_some(member.mount_namespace));
            new
        };
        self.members.iter().filter(|member| new(member)).collect()
    }
}

impl Member {
    fn read(dir: &TaskDir, level: usize) -> Option<Self> {
        let status = status(dir)?;
        let at_level = |line| numbers(&status, line)?.get(level).copied();
        Some(Self {
            pid: dir.id,
            inner: at_level("NSpid:")?,
            inner_group: at_level("NSpgid:")?,
            mount_namespace: dir.namespace("mnt")?,
        })
    }
}

fn status(dir: &TaskDir) -> Option<String> {
    dir.read("status").ok().map(|status| String::from_utf8_lossy(&status).into_owned())
}

/// A line of `status`: one number for each pid namespace, the outermost first.
fn numbers(status: &str, line: &str) -> Option<Vec<i32>> {
    let numbers = status.lines().find_map(|text| text.strip_prefix(line))?;
    numbers.split_whitespace().map(|number| number.parse().ok()).collect()
}

/// Children of every thread.
pub(super) fn children(process: &TaskDir) -> Vec<i32> {
    process.tasks().into_iter().flatten().flat_map(|task| children_of(&task)).collect()
}

/// Children of one thread.
pub(super) fn children_of(task: &TaskDir) -> Vec<i32> {
    let text = task.read("children").unwrap_or_default();
    String::from_utf8_lossy(&text).split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_in_the_tree_of_its_parent() {
        let me = std::process::id() as i32;
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let tree = Tree::of(me);
        assert_eq!(tree.members[0].pid, me);
        let found = tree.by_pid(child.id() as i32).copied();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.map(|member| tree.by_inner(member.inner).copied()), Some(found));
        assert_eq!(Tree::of(i32::MAX).members, []);
    }
}
