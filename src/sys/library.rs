//! Shared libraries that are loaded when they are needed, so that nobody must install what he does not use.

/// A library cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} cannot be loaded: {1}; is it installed?")]
pub struct LoadError(pub &'static str, pub String);

/// Opens the first of several files that is there. It stays loaded for good: libraries leave threads and handlers behind.
pub(super) fn open(names: &[&'static str]) -> Result<&'static libloading::Library, LoadError> {
    let mut failed = LoadError("a library without a name", String::new());
    for name in names {
        // SAFETY: initialisers of the system's own libraries run; they are made to be loaded at any time by any thread.
        match unsafe { libloading::Library::new(*name) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            Err(error) => failed = LoadError(name, error.to_string()),
        }
    }
    Err(failed)
}

/// A struct of a library's functions with `get()`, which loads it once.
///
/// The signatures must be those of the library's header: the compiler cannot see it.
macro_rules! library {
    ($(#[$doc:meta])* $name:ident = $files:expr; $(fn $function:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$doc])*
        struct $name { $($function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl $name {
            /// The library, loaded now if it was not. It is looked for again when it was not there.
            fn get() -> Result<&'static Self, $crate::sys::library::LoadError> {
                use $crate::sys::library::{LoadError, open};
                static LOADED: std::sync::Mutex<Option<&'static $name>> = std::sync::Mutex::new(None);
                let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if let Some(library) = *loaded {
                    return Ok(library);
                }
                let library = open($files)?;
                let missing = |error: libloading::Error| LoadError($files[0], error.to_string());
                let functions: &'static Self = Box::leak(Box::new(Self { $($function: {
                    let name = concat!(stringify!($function), "\0").as_bytes();
                    // SAFETY: the signature is that of the library's header.
                    *unsafe { library.get(name) }.map_err(missing)?
                },)* }));
                *loaded = Some(functions);
                Ok(functions)
            }
        }
    };
}
pub(super) use library;
