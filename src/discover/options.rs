//! The superblock options of an autofs mount, as the kernel shows them in mountinfo.

use super::escaped::escape;
use super::facts::{AutofsOptions, MountType};
use super::mountinfo::number;

impl AutofsOptions {
    /// From mountinfo's last field. What is not understood goes to [`AutofsOptions::unknown`]: a later kernel
    /// may show more, and then a dump can say that it would lose it.
    pub fn parse(field: &[u8]) -> Self {
        let mut options = Self {
            fd: -1,
            pgrp: 0,
            timeout: 0,
            min_proto: 0,
            max_proto: 0,
            mount_type: MountType::Indirect,
            strict_expire: false,
            ignore: false,
            uid: None,
            gid: None,
            pipe_ino: None,
            unknown: Vec::new(),
        };
        for item in field.split(|&byte| byte == b',').filter(|i| !i.is_empty()) {
            if options.set(item).is_none() {
                options.unknown.push(escape(item));
            }
        }
        options
    }

    /// One option; `None` when it is not known, or its value is not.
    fn set(&mut self, item: &[u8]) -> Option<()> {
        let (name, value) = match item.iter().position(|&byte| byte == b'=') {
            Some(at) => (&item[..at], &item[at + 1..]),
            None => (item, &b""[..]),
        };
        match name {
            b"fd" => self.fd = number(value)?,
            b"pgrp" => self.pgrp = number(value)?,
            b"timeout" => self.timeout = number(value)?,
            b"minproto" => self.min_proto = number(value)?,
            b"maxproto" => self.max_proto = number(value)?,
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"pipe_ino" if value == b"-1" => self.pipe_ino = None,
            b"pipe_ino" => self.pipe_ino = Some(number(value)?),
            b"indirect" => self.mount_type = MountType::Indirect,
            b"direct" => self.mount_type = MountType::Direct,
            b"offset" => self.mount_type = MountType::Offset,
            b"strictexpire" => self.strict_expire = true,
            b"ignore" => self.ignore = true,
            // of every file system: writable, and labelled by SELinux
            b"rw" | b"seclabel" => {}
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::Pipe;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_kernel_prints() {
        let options = AutofsOptions::parse(
            b"rw,fd=7,uid=10,gid=20,pgrp=812,timeout=300,minproto=5,maxproto=5,offset,strictexpire,ignore,pipe_ino=918273",
        );
        assert_eq!(
            options,
            AutofsOptions {
                fd: 7,
                pgrp: 812,
                timeout: 300,
                min_proto: 5,
                max_proto: 5,
                mount_type: MountType::Offset,
                strict_expire: true,
                ignore: true,
                uid: Some(10),
                gid: Some(20),
                pipe_ino: Some(918_273),
                unknown: vec![],
            }
        );
    }

    #[test]
    fn three_states_of_the_pipe() {
        let pipe = |text: &str| AutofsOptions::parse(text.as_bytes()).pipe();
        assert_eq!(pipe("rw,fd=7,direct,pipe_ino=1"), Pipe::Inode(1));
        assert_eq!(pipe("rw,fd=-1,direct,pipe_ino=-1"), Pipe::Catatonic);
        assert_eq!(pipe("rw,fd=-1,direct"), Pipe::Catatonic);
        assert_eq!(pipe("rw,fd=7,direct"), Pipe::NotShown);
    }

    #[test]
    fn what_is_not_known_is_kept() {
        let options = AutofsOptions::parse(b"ro,fd=3,pgrp=many,colour=\xff,direct");
        assert_eq!(options.unknown, ["ro", "pgrp=many", r"colour=\377"]);
        assert_eq!((options.fd, options.mount_type), (3, MountType::Direct));
    }

    /// As autofs_show_options() does it.
    fn print(o: &AutofsOptions) -> String {
        let mut text = format!("rw,fd={}", o.fd);
        for (name, id) in [("uid", o.uid), ("gid", o.gid)] {
            text += &id.map_or(String::new(), |id| format!(",{name}={id}"));
        }
        text += &format!(",pgrp={},timeout={}", o.pgrp, o.timeout);
        text += &format!(",minproto={},maxproto={}", o.min_proto, o.max_proto);
        text += match o.mount_type {
            MountType::Indirect => ",indirect",
            MountType::Direct => ",direct",
            MountType::Offset => ",offset",
        };
        for (name, set) in [("strictexpire", o.strict_expire), ("ignore", o.ignore)] {
            text += &if set { format!(",{name}") } else { String::new() };
        }
        text + &o.pipe_ino.map_or(",pipe_ino=-1".into(), |ino| format!(",pipe_ino={ino}"))
    }

    prop_compose! {
        fn any_options()(
            (fd, pgrp, timeout) in any::<(i32, i32, u64)>(),
            (min_proto, max_proto) in any::<(u32, u32)>(),
            mount_type in prop_oneof![Just(MountType::Indirect), Just(MountType::Direct), Just(MountType::Offset)],
            (strict_expire, ignore) in any::<(bool, bool)>(),
            (uid, gid, pipe_ino) in any::<(Option<u32>, Option<u32>, Option<u64>)>(),
        ) -> AutofsOptions {
            AutofsOptions {
                fd, pgrp, timeout, min_proto, max_proto, mount_type, strict_expire, ignore, uid, gid, pipe_ino,
                unknown: vec![],
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(field: Vec<u8>) {
            AutofsOptions::parse(&field);
        }

        #[test]
        fn what_is_printed_is_parsed(options in any_options()) {
            prop_assert_eq!(AutofsOptions::parse(print(&options).as_bytes()), options);
        }
    }
}
