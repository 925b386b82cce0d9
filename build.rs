//! Compiles `proto/` into Rust; protox stands in for protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let messages = protox::compile(["autofs.proto", "autofs-cr.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(messages)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
