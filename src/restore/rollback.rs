//! Undo: what acts registers first how to take it back.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

type Action<'a> = Box<dyn FnOnce() -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a>;

/// What was done and how to take it back, oldest first.
#[derive(Default)]
pub struct UndoStack<'a> {
    entries: Vec<(&'static str, PathBuf, Action<'a>)>,
}

impl fmt::Debug for UndoStack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.iter().map(|(what, path, _)| (what, path));
        f.debug_list().entries(entries).finish()
    }
}

impl<'a> UndoStack<'a> {
    /// Nothing done yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Register how to take something back; `what` and `path` say it in an error: `unmount`, `/data`.
    pub fn push<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &mut self,
        what: &'static str,
        path: impl Into<PathBuf>,
        action: impl FnOnce() -> Result<(), E> + 'a,
    ) {
        self.entries.push((what, path.into(), Box::new(|| action().map_err(Into::into))));
    }

    /// Take everything back, newest first. A failure stops nothing; all are returned.
    pub fn roll_back(self) -> Vec<String> {
        let entries = self.entries.into_iter().rev();
        let failed = entries.filter_map(|(what, path, action)| {
            let error = action().err()?;
            Some(format!("cannot {what} {}: {error}", path.display()))
        });
        failed.collect()
    }

    /// It is done for good.
    pub fn commit(self) {}

    /// Take everything back because of `causal`.
    pub fn fail<E>(self, causal: E) -> RollbackError<E> {
        RollbackError { causal, rollback: self.roll_back() }
    }
}

/// An error, and what went wrong while everything before it was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackError<E> {
    /// Why.
    pub causal: E,
    /// What remains; empty when all is as it was.
    pub rollback: Vec<String>,
}

impl<E> RollbackError<E> {
    /// The same with another cause.
    pub fn map<F>(self, f: impl FnOnce(E) -> F) -> RollbackError<F> {
        RollbackError { causal: f(self.causal), rollback: self.rollback }
    }
}

impl<E: fmt::Display> fmt::Display for RollbackError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.causal)?;
        self.rollback.iter().try_for_each(|error| write!(f, "\nand it could not all be taken back: {error}"))
    }
}

impl<E: fmt::Display + fmt::Debug> std::error::Error for RollbackError<E> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Errno;
    use std::cell::RefCell;

    #[test]
    fn newest_first_and_a_failure_stops_nothing() {
        let done = RefCell::new(Vec::new());
        let mut undo = UndoStack::new();
        for step in 1..=3 {
            let done = &done;
            undo.push("unmount", format!("/{step}"), move || {
                done.borrow_mut().push(step);
                if step == 2 { Err(Errno::BUSY) } else { Ok(()) }
            });
        }
        let error = undo.fail(Errno::NOSPC);
        assert_eq!(*done.borrow(), [3, 2, 1]);
        let text = error.to_string();
        assert!(text.contains("No space") && text.contains("cannot unmount /2: "), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn what_is_committed_stays() {
        let mut undo = UndoStack::new();
        undo.push("unmount", "/1", || -> Result<(), Errno> { panic!("undone") });
        assert_eq!(format!("{undo:?}"), r#"[("unmount", "/1")]"#);
        undo.commit();
    }
}
