//! Detection of machines on which the backend `wgpu` would compute through OpenGL.
//!
//! Burn's kernels stand still there in the first evaluation. `wgpu` chooses OpenGL where neither
//! Vulkan nor DirectX has an adapter, and where only OpenGL has a GPU.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use burn::tensor::wgpu::wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};

/// A graphics adapter.
#[derive(Clone)]
struct Adapter {
    name: String,
    /// False for a software renderer.
    is_gpu: bool,
}

/// Returns the name of the OpenGL adapter that `wgpu` would choose; none if it would choose
/// Vulkan, Metal or DirectX, or has nothing to choose from.
pub(crate) fn chosen_adapter() -> Option<String> {
    choose(&adapters(Backends::PRIMARY), || adapters(Backends::GL))
}

/// Chooses as `wgpu` does (cubecl-wgpu 0.11.3, `settle` in `runtime.rs`): the first interface with
/// a GPU, or else the first with a software renderer.
fn choose(primary: &[Adapter], opengl: impl FnOnce() -> Vec<Adapter>) -> Option<String> {
    if primary.iter().any(|adapter| adapter.is_gpu) {
        return None;
    }
    let mut opengl = opengl().into_iter();
    let chosen = match primary.is_empty() {
        true => opengl.next(),
        false => opengl.find(|adapter| adapter.is_gpu),
    };
    chosen.map(|adapter| adapter.name)
}

fn adapters(backends: Backends) -> Vec<Adapter> {
    let instance = Instance::new(InstanceDescriptor {
        backends,
        ..InstanceDescriptor::new_without_display_handle()
    });
    let future = pin!(instance.enumerate_adapters(backends));
    // Outside of browsers the list is ready at once.
    let Poll::Ready(adapters) = future.poll(&mut Context::from_waker(Waker::noop())) else {
        return Vec::new();
    };
    let infos = adapters.iter().map(|adapter| adapter.get_info());
    infos
        .map(|info| Adapter {
            is_gpu: info.device_type != DeviceType::Cpu,
            name: info.name,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opengl_is_chosen_only_without_a_better_interface() {
        let adapter = |name: &str, is_gpu| Adapter {
            name: name.to_owned(),
            is_gpu,
        };
        let [gpu, lavapipe] = [adapter("RTX", true), adapter("lavapipe", false)];
        let [virgl, llvmpipe] = [adapter("virgl", true), adapter("llvmpipe", false)];
        for (primary, opengl, chosen) in [
            (vec![&gpu], vec![&virgl], None),
            (vec![&lavapipe, &gpu], vec![&virgl], None),
            (vec![&lavapipe], vec![&llvmpipe], None),
            (vec![&lavapipe], vec![&llvmpipe, &virgl], Some("virgl")),
            (vec![], vec![&llvmpipe], Some("llvmpipe")),
            (vec![], vec![], None),
        ] {
            let owned = |list: &[&Adapter]| -> Vec<Adapter> {
                list.iter().map(|adapter| (*adapter).clone()).collect()
            };
            let found = choose(&owned(&primary), || owned(&opengl));
            assert_eq!(found.as_deref(), chosen);
        }
    }
}
