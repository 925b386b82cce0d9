//! Records of hesiod, in a file. What a server says is in the scenario `map-sources`.

use crate::cases;
use crate::common::Setup;

cases! {
    records: "joe NFS /u1/joe orange w /mit/joe 1\nann AFS /afs/mit/ann r /mit/ann\ndisk ext4 /dev/sda1 nosuid /d\n\
              no ERR not for you\nshort NFS /u1\namp UFS /a&b$c w /x\n",
        with Setup { kind: "file,hesiod:", ..Setup::default() }, {
        "joe" => "-t nfs -o rw orange:/u1/joe",
        "ann" => "symlink /afs/mit/ann",
        "disk" => "-t ext4 -o nosuid /dev/sda1",
        "no" => "error: @/map:4:4: the record is an error: not for you, in the entry of key no",
        "short" => "error: @/map:5:14: the record has no host; a record is TYPE PATH MODE WHERE, or NFS PATH HOST MODE WHERE, in the entry of key short",
        "amp" => "-t ufs -o rw /a&b$c",
        "other" => "ENOENT",
    }
}
