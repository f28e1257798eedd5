//! The image tower: a vision transformer or a ResNet.

use burn::{
    module::{
        Content, Devices, DisplaySettings, Module, ModuleDisplay, ModuleDisplayDefault,
        ModuleMapper, ModuleVisitor,
    },
    tensor::{Device, Tensor},
};

use super::{Observer, ResNet, VisionTower, params::Builder};
use crate::{
    config::{ClipConfig, VisionKind},
    error::CheckpointError,
};

/// The image tower of a CLIP.
///
/// [`Module`] is implemented by hand because the derived implementation would put the name of the
/// variant into every parameter path.
#[derive(Clone, Debug)]
// A model has one of these, so the memory that the smaller variant wastes does not matter.
#[allow(clippy::large_enum_variant)]
pub enum ImageTower {
    /// A vision transformer.
    Vit(VisionTower),
    /// A modified ResNet.
    ResNet(ResNet),
}

macro_rules! either {
    ($tower:expr, $inner:ident => $body:expr) => {
        match $tower {
            ImageTower::Vit($inner) => $body,
            ImageTower::ResNet($inner) => $body,
        }
    };
}

macro_rules! wrapped {
    ($tower:expr, $inner:ident => $body:expr) => {
        match $tower {
            ImageTower::Vit($inner) => ImageTower::Vit($body),
            ImageTower::ResNet($inner) => ImageTower::ResNet($body),
        }
    };
}

impl ImageTower {
    pub(super) fn build(
        builder: &mut Builder<'_>,
        config: &ClipConfig,
    ) -> Result<Self, CheckpointError> {
        Ok(match config.vision.kind {
            VisionKind::ResNet { stages } => Self::ResNet(ResNet::build(builder, config, stages)?),
            VisionKind::Clip | VisionKind::Siglip => {
                Self::Vit(VisionTower::build(builder, config)?)
            }
        })
    }

    /// Returns the side of the square input images, in pixels.
    pub fn image_size(&self) -> usize {
        either!(self, tower => tower.image_size())
    }

    pub(super) fn forward<O: Observer>(&self, pixels: Tensor<4>, observer: &mut O) -> Tensor<2> {
        either!(self, tower => tower.forward(pixels, observer))
    }
}

impl Module for ImageTower {
    fn collect_devices(&self, devices: Devices) -> Devices {
        either!(self, tower => tower.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        wrapped!(self, tower => tower.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        wrapped!(self, tower => tower.to_device(device))
    }

    fn train(self) -> Self {
        wrapped!(self, tower => tower.train())
    }

    fn valid(&self) -> Self {
        wrapped!(self, tower => tower.valid())
    }

    fn materialize(self) -> Self {
        wrapped!(self, tower => tower.materialize())
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        either!(self, tower => tower.visit(visitor));
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        wrapped!(self, tower => tower.map(mapper))
    }
}

impl ModuleDisplayDefault for ImageTower {
    fn content(&self, content: Content) -> Option<Content> {
        either!(self, tower => ModuleDisplayDefault::content(tower, content))
    }

    fn num_params(&self) -> usize {
        Module::num_params(self)
    }
}

impl ModuleDisplay for ImageTower {
    fn format(&self, settings: DisplaySettings) -> String {
        either!(self, tower => tower.format(settings))
    }
}
