//! What is there in the end, compared with the image.

use super::plan::{Action, Attach, Number, RestorePlan, Step, Why};
use crate::discover::facts::{AutofsMount, AutofsOptions, MountType, Propagation};
use crate::image::Checkpoint;
use crate::sys::DevNum;
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// What became of one mount of the image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Where.
    #[serde(with = "crate::discover::escaped")]
    pub path: PathBuf,
    /// Its type.
    pub mount_type: MountType,
    /// How it came to be there.
    pub how: How,
    /// Why nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// Its number in the image.
    pub old_dev: DevNum,
    /// What has its old number, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<String>,
    /// The facts as they are now; `None`: it is not there.
    pub now: Option<AutofsMount>,
    /// What is not as in the image, or not as it should be.
    pub differences: Vec<Difference>,
}

/// How a mount came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Made.
    Created,
    /// Attached at a second place.
    Bound,
    /// It was there.
    Adopted,
    /// Nothing was done.
    Skipped,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which property.
    pub what: &'static str,
    /// In the image, or expected.
    pub expected: String,
    /// Here.
    pub here: String,
}

/// Compare. `master`: who should answer.
pub fn compare(
    image: &Checkpoint,
    plan: &RestorePlan,
    made: &HashMap<usize, DevNum>,
    now: &[AutofsMount],
    master: Option<i32>,
) -> Vec<Outcome> {
    let places: HashMap<(&Path, DevNum), &AutofsMount> =
        now.iter().map(|mount| ((mount.path.as_path(), mount.dev), mount)).collect();
    let outcome = |(index, step): (usize, &Step)| {
        let old = &image.mounts[step.mount].facts;
        let dev = match &step.action {
            Action::Create { .. } | Action::Bind { .. } => made.get(&index).copied(),
            Action::Adopt { dev, .. } => Some(*dev),
            Action::Skip(_) => None,
        };
        let here = dev.and_then(|dev| places.get(&(step.path.as_path(), dev)).copied());
        let how = match &step.action {
            _ if dev.is_none() => How::Skipped,
            Action::Create { .. } => How::Created,
            Action::Bind { .. } => How::Bound,
            Action::Adopt { .. } => How::Adopted,
            Action::Skip(_) => How::Skipped,
        };
        let taken_by = match &step.action {
            Action::Create { number: Number::New { taken_by }, .. } => Some(taken_by.clone()),
            _ => None,
        };
        let expected = (step.attach != Attach::Nobody).then_some(master).flatten();
        Outcome {
            path: step.path.clone(),
            mount_type: old.options.mount_type,
            how,
            why: match step.action {
                Action::Skip(why) => Some(why),
                _ => None,
            },
            old_dev: old.dev,
            taken_by,
            now: here.cloned(),
            differences: match (here, dev) {
                (Some(here), _) => differences(old, here, how, expected),
                (None, Some(dev)) => vec![difference("mount", dev, "none")],
                (None, None) => Vec::new(),
            },
        }
    };
    plan.steps.iter().enumerate().map(outcome).collect()
}

fn differences(old: &AutofsMount, here: &AutofsMount, how: How, master: Option<i32>) -> Vec<Difference> {
    let (was, is) = (&old.options, &here.options);
    let mut found = Vec::new();
    let mut check = |what, expected: String, here: String| {
        if expected != here {
            found.push(Difference { what, expected, here });
        }
    };
    let text = |value: &dyn Display| value.to_string();
    check("type", text(&was.mount_type), text(&is.mount_type));
    check("timeout", text(&was.timeout), text(&is.timeout));
    check("protocol", protocol(was), protocol(is));
    check("strictexpire", text(&was.strict_expire), text(&is.strict_expire));
    check("ignore", text(&was.ignore), text(&is.ignore));
    check("owner", owner(was), owner(is));
    if how == How::Created {
        check("source", text(&old.source.display()), text(&here.source.display()));
        check("flags", old.mount_flags.join(","), here.mount_flags.join(","));
        check("propagation", propagation(&old.propagation).into(), propagation(&here.propagation).into());
    }
    if let Some(master) = master {
        let its = here.master.process().map_or("none".into(), |process| process.pid.to_string());
        check("master", master.to_string(), its);
    }
    found
}

fn difference(what: &'static str, expected: impl Display, here: impl Display) -> Difference {
    Difference { what, expected: expected.to_string(), here: here.to_string() }
}

fn protocol(options: &AutofsOptions) -> String {
    format!("{}-{}", options.min_proto, options.max_proto)
}

fn owner(options: &AutofsOptions) -> String {
    format!("{}:{}", options.uid.unwrap_or(0), options.gid.unwrap_or(0))
}

/// A slave without a master to listen to is a private mount.
fn propagation(propagation: &Propagation) -> &'static str {
    match propagation {
        Propagation { shared: Some(_), .. } => "shared",
        Propagation { unbindable: true, .. } => "unbindable",
        _ => "private",
    }
}
