//! `jitcast map`: one page with a picture of the window, which opens from the disk: where everything lies, what is free, what is
//! retired and who holds it back.

mod model;
mod page;

use std::process::ExitCode;

use jitcast::compiler::request;

use super::Failure;
use super::args::MapArgs;
use super::observe;
use super::publish::connect;
use super::status::of_worker;

pub(super) fn map(args: &MapArgs) -> Result<ExitCode, Failure> {
    let (observer, status) = if let Some(socket) = &args.socket {
        let status = request::status_with_layout(connect(socket)?)?;
        (observe::observe_at(socket)?, Some(status))
    } else if let Some(pid) = args.pid {
        (of_worker(pid)?, None)
    } else {
        let name = args.name.as_deref().unwrap_or_default();
        let observer = observe::observe_named(name)?;
        let socket = observe::stated_socket(&observer);
        let asked = (!socket.is_empty()).then(|| connect(&socket).ok());
        let status = asked.flatten().map(request::status_with_layout);
        (observer, status.and_then(Result::ok))
    };
    let model = observer.look(|look| model::Model::new(look, status.as_ref()))?;
    let page = page::page(&model)?;
    let path = &args.output;
    std::fs::write(path, page).map_err(|cause| {
        let help = "choose another file with -o";
        Failure(format!(
            "cannot write {}: {cause}\n  help: {help}",
            path.display()
        ))
    })?;
    eprintln!(
        "{}: generation {}, {} units",
        path.display(),
        model.generation,
        model.units.len()
    );
    Ok(ExitCode::SUCCESS)
}
