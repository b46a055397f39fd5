//! A compiler process in about twenty lines: publish a function, then a better one.

use std::sync::Arc;

use jitcast::compiler::front::{Options, compile_file};
use jitcast::compiler::{Compiler, CompilerOptions, Policy, Server, UnitSource};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let compiler = Arc::new(Compiler::create(&CompilerOptions::default())?);
    let server = Server::bind("/tmp/score.sock", Policy::default(), Options::default())?;
    let (stop, shared) = (server.stopper()?, Arc::clone(&compiler));
    let serving = std::thread::spawn(move || server.run(shared));
    for version in ["examples/score.clif", "examples/score2.clif"] {
        let file = compile_file(version.as_ref(), &Options::default())?;
        let done = compiler.publish(&[UnitSource::new("score", [file])])?;
        println!("{version} is generation {}; press Enter", done.generation);
        std::io::stdin().read_line(&mut String::new())?;
    }
    stop.stop();
    Ok(serving.join().expect("the server does not panic")?)
}
