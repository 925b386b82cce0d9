//! `&`, `$`, quotes and escapes.

use crate::cases;
use crate::common::Setup;

cases! {
    t19_ampersand: "amp server:/exp/a\\&b\namp2 server:/exp/a&b\n", {
        "amp" => "-t nfs server:/exp/a&b",
        "amp2" => "-t nfs server:/exp/aamp2b",
    }
    t20_dollar_without_a_name: "dol2 server:/exp/C$\ndol4 server:/exp/C$/x\ndol server:/exp/a\\$b\n", {
        "dol2" => "-t nfs server:/exp/C$",
        "dol4" => "-t nfs server:/exp/C/x",
        "dol" => "-t nfs server:/exp/a$b",
    }
    t22_undefined_variables_are_empty: "undef server:/exp/${NOSUCH}x/$ALSO_NO/y\n", {
        "undef" => "-t nfs server:/exp/x//y",
    }
    /// automount mounts `server:/exp/pre`, without what follows.
    t23_unclosed_brace: "brk server:/exp/pre${HOST\n", {
        "brk" => "error: @/map:1:20: a variable that begins with ${ has no } at its end, in the entry of key brk",
    }
    t25_upper_and_lower_case: "host server:/$HOST/$host/$hostd/$domain/$SHOST\n", {
        "host" => "-t nfs server:/client.example.org/client/client.example.org/example.org/client",
    }
    t26_requester: "std server:/$USER.$UID.$GROUP.$GID$HOME\n", {
        "std" => "-t nfs server:/root.0.root.0/root",
    }
    t28_key_of_a_direct_map: "\"/dd/q s\" server:/q&\n",
        with Setup { mount_point: "/-", ..Setup::default() }, {
        "/dd/q s" => "-t nfs server:/q/dd/q s",
    }
    t29_no_octal_escapes: "t040 server:/a\\040b\n", {
        "t040" => "-t nfs server:/a040b",
    }
    t31_quoted_option_value: "oq -fstype=fuse,ssh_command=\"/usr/bin/ssh -F /x y\",rw :sshfs\\#root@test.example.com\\:/\n", {
        "oq" => "-t fuse -o ssh_command=/usr/bin/ssh -F /x y,rw sshfs#root@test.example.com:/",
    }
    t32_colons_become_slashes: "col server:/exp/a:/b\ncol2 -fstype=cifs ://win/c:d\n", {
        "col" => "-t nfs server:/exp/a//b",
        "col2" => "-t cifs //win/c/d",
    }
    t32_no_slashify_colons: "col server:/exp/a:/b\ncol2 -fstype=cifs ://win/c:d\n",
        with Setup { options: "--no-slashify-colons", ..Setup::default() }, {
        "col" => "-t nfs server:/exp/a:/b",
        "col2" => "-t cifs //win/c:d",
    }
    /// As automount does.
    quotes_keep_everything: "q1 server:\"/a&b\"\nq2 server:\"/a\\&b\"\nq3 \"server:/a$HOST/b\"\n", {
        "q1" => "-t nfs server:/a&b",
        "q2" => "-t nfs server:/a\\&b",
        "q3" => "-t nfs server:/a$HOST/b",
    }
    /// mount(8) takes a comma in a value only between quotes; automount removes them.
    quoted_commas_stay_quoted: "q -fstype=foo,context=\"a:b:c0,c1\",rw :/dev/x\n", {
        "q" => "-t foo -o context=\"a:b:c0,c1\",rw /dev/x",
    }
    /// automount writes `lowerdir=/a:/b//c`.
    colons_in_options_stay: "o -fstype=overlay,lowerdir=/a:/b:/c :none\n", {
        "o" => "-t overlay -o lowerdir=/a:/b:/c none",
    }
    a_key_with_blanks_is_one_word: "* server:/exp/&\n", {
        "two words" => "-t nfs server:/exp/two words",
        "a:b" => "-t nfs server:/exp/a:b",
    }
    defined_variables: "d server:/$X\ne $TWO\n",
        with Setup { options: "-DX=x -DTWO=\"-ro server:/two\"", ..Setup::default() }, {
        "d" => "-t nfs server:/x",
        "e" => "-t nfs -o ro server:/two",
    }
}

#[test]
fn t22_is_warned_about() {
    let opened = Setup::default().open("undef server:/exp/${NOSUCH}x\n");
    let (_, warnings) = opened.lookup_warned("undef");
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].at.to_string(), "1:19");
    assert_eq!(warnings[0].message, "variable NOSUCH is not defined: it is empty");
}

#[test]
fn definitions_of_a_map_win_over_global_ones() {
    let mut site = crate::common::site();
    site.definitions = vec![("A".into(), b"global".to_vec()), ("HOST".into(), b"defined".to_vec())];
    let setup = Setup { options: "-DA=map", site, ..Setup::default() };
    let opened = setup.open("k server:/$A/$HOST\n");
    assert_eq!(opened.lookup("k"), "-t nfs server:/map/defined");
}
