//! From a file to a new kernel.

use std::path::Path;

use callboard_client::KernelClient;
use callboard_policy::terms::{Hash, StateGroup};
use callboard_protocol::{
    KernelId,
    control::{Origin, StartKernel},
    history::{PutChunk, SeedEnd, SeedPage},
};

use super::{
    file::{self, About, Checked},
    hex,
};
use crate::{
    branch::wait_begun,
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};

/// Bytes of a chunk in one message; in base64 it stays under the broker's usual limit of 1 MiB.
const PIECE_BYTES: usize = 512 << 10;
/// Bytes of groups in one message.
const PAGE_BYTES: usize = 384 << 10;

/// Runs `kernel restore`.
///
/// # Errors
/// A [`Failure`] if the file is not whole, before anything is started; or if no kernel starts.
pub async fn restore(
    context: &Context,
    path: &Path,
    name: Option<String>,
    replicas: u8,
) -> Outcome {
    // To its end, before anything is started.
    let Checked { about, groups } = file::read(path, |_, _| Ok(()))?;
    let client = context.connect().await?;
    let kernel = KernelId::generate();
    let request = StartKernel {
        kernel,
        name,
        replicas,
        options: Default::default(),
        origin: Some(Origin::Upload),
        settings: Default::default(),
    };
    let spec = client.control().start_kernel(&request).await?;
    let upload = client.kernel(kernel);
    if let Err(failure) = fill(&upload, path, &about, &groups).await {
        say(&format!("the kernel that was started for it is ended again: {kernel}"));
        client.control().stop_kernel(kernel).await?;
        return Err(failure);
    }
    wait_begun(&client, kernel).await?;
    say(&format!("it has the state after cell {} of kernel {}", about.cell, about.kernel));
    context.printer.data(&spec, |spec| spec.kernel.to_string())?;
    Ok(Exit::Ok)
}

/// Uploads the chunks, then names them.
async fn fill(
    client: &KernelClient,
    path: &Path,
    about: &About,
    groups: &[(String, StateGroup)],
) -> Result<(), Failure> {
    // One chunk is in memory at a time: the file is read by a thread that waits for the upload.
    let (sender, mut chunks) = tokio::sync::mpsc::channel::<(Hash, Vec<u8>)>(1);
    let file = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        file::read(&file, |hash, bytes| {
            let gone = |_| Failure::new(Exit::Failed, "the upload ended");
            sender.blocking_send((hash, bytes)).map_err(gone)
        })
    });
    while let Some((hash, bytes)) = chunks.recv().await {
        put(client, hash, &bytes).await?;
    }
    let read = reading.await.map_err(|error| Failure::new(Exit::Internal, error))?;
    read?;
    let end = SeedEnd {
        refused: about.refused.clone(),
        execution_count: about.execution_count,
        from: format!("a backup of the state after cell {} of kernel {}", about.cell, about.kernel),
    };
    seed(client, groups, end).await
}

async fn put(client: &KernelClient, hash: Hash, bytes: &[u8]) -> Result<(), Failure> {
    let mut offset = 0;
    loop {
        let end = bytes.len().min(offset + PIECE_BYTES);
        let piece = PutChunk {
            hash: hex(&hash),
            length: bytes.len() as u64,
            offset: offset as u64,
            bytes: bytes[offset..end].to_vec().into(),
        };
        let progress = client.put_chunk(&piece).await?;
        if progress.is_durable {
            return Ok(());
        }
        // A kernel that changed its leader begins anew.
        offset = usize::try_from(progress.held).unwrap_or(0).min(bytes.len());
    }
}

async fn seed(
    client: &KernelClient,
    groups: &[(String, StateGroup)],
    end: SeedEnd,
) -> Result<(), Failure> {
    let unwritable = |error| Failure::new(Exit::Internal, format!("cannot write a page: {error}"));
    let mut skip = 0;
    loop {
        let (mut count, mut bytes) = (0, 0);
        for group in &groups[skip..] {
            bytes += rmp_serde::to_vec(group).map_err(unwritable)?.len();
            if bytes > PAGE_BYTES && count > 0 {
                break;
            }
            count += 1;
        }
        let page = &groups[skip..skip + count];
        let is_last = skip + count == groups.len();
        let page = SeedPage {
            skip: skip as u64,
            groups: rmp_serde::to_vec(page).map_err(unwritable)?.into(),
            end: is_last.then(|| end.clone()),
        };
        let progress = client.seed(&page).await?;
        if progress.has_begun {
            return Ok(());
        }
        skip = usize::try_from(progress.held).unwrap_or(0).min(groups.len());
    }
}
