//! Bodies of verbs about kernels, their history, users and the cluster: what is read is the same after
//! it is written again.
#![no_main]

use std::fmt::Debug;

use callboard_protocol::{control, history, kernel, users};
use serde::{Serialize, de::DeserializeOwned};

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(body) else { return };
    let written = serde_json::to_vec(&read).expect("it can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).ok(), Some(read));
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    comes_back::<kernel::GetOutputs>(body);
    comes_back::<kernel::AskFate>(body);
    comes_back::<kernel::Seen>(body);
    comes_back::<kernel::SeenAnswer>(body);
    comes_back::<kernel::Outputs>(body);
    comes_back::<kernel::CellEnd>(body);
    comes_back::<history::Rewind>(body);
    comes_back::<history::KeepState>(body);
    comes_back::<history::Restart>(body);
    comes_back::<control::StartKernel>(body);
    comes_back::<control::StopKernel>(body);
    comes_back::<control::FindKernel>(body);
    comes_back::<control::ListKernels>(body);
    comes_back::<users::AddUser>(body);
    comes_back::<users::AddToken>(body);
    comes_back::<users::UserList>(body);
});
