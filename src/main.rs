//! The command `autofs-cr`.

mod cli;

fn main() {
    cli::main()
}
