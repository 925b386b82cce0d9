//! The kernel's interfaces, made safe: the only place with unsafe code.
//!
//! | module | kernel interface |
//! |---|---|
//! | [`devnum`] | device numbers in the three encodings the kernel uses |
//! | [`control`] | the fourteen `/dev/autofs` commands |
//! | [`packet`] | what the kernel writes into a mount's pipe |
//! | [`memory`] | the allocator of a process that stays |
//! | [`mount`] | the mount API (fsopen family, bind, propagation, umount) |
//! | [`mountns`] | entering mount namespaces |
//! | [`statmount`] | listmount and statmount, where the kernel has them |
//! | [`fork`] | child processes that run this program's own code |
//! | [`kerberos`] | which Kerberos tickets a thread uses |
//! | [`library`] | shared libraries that are loaded when they are needed |
//! | [`ldap`] | OpenLDAP's client library |
//! | [`netgroup`] | netgroups of the name service |
//! | [`privilege`] | capabilities that a process gives up |
//! | [`hesiod`] | hesiod, by its library |
//! | [`nis`] | NIS, by its library |
//! | [`process`] | pidfds, descriptors of other processes, process groups |
//! | [`sss`] | SSSD's library for automounters |
//! | [`tracee`] | ptrace: hold a task, read and change its registers, call in its place |
//! | [`uncovered`] | directories that a mount hides |
//! | [`features`] | what this kernel can do, probed once |
//! | [`hostname`] | names of hosts, asked of the name service |

pub mod control;
pub mod devnum;
pub mod features;
pub mod fork;
pub mod hesiod;
pub mod hostname;
pub mod kerberos;
pub mod ldap;
mod library;
pub mod memory;
pub mod mount;
pub mod mountns;
pub mod netgroup;
pub mod nis;
pub mod packet;
pub mod privilege;
pub mod process;
pub mod sss;
pub mod statmount;
pub mod tracee;
pub mod uncovered;

pub use devnum::DevNum;
pub use rustix::io::Errno;

/// A key of a map of a service, with its text.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// The errno that the last call of libc left.
fn last_errno() -> Errno {
    io_errno(std::io::Error::last_os_error())
}

/// That of an error of the standard library; EIO where it is not the kernel's.
pub fn io_errno(error: impl std::borrow::Borrow<std::io::Error>) -> Errno {
    Errno::from_io_error(error.borrow()).unwrap_or(Errno::IO)
}

/// That of an error of nix.
pub fn nix_errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}
