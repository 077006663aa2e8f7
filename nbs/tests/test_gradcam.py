"""The colours of heat maps, for eyes that differ."""
from matplotlib import colormaps
import numpy as np
import pytest

from radiology_clip_mini.gradcam import HEAT

STEPS = np.linspace(0, 1, 256)
EYES = dict( # Machado et al. (2009), in linear light
    usual=np.eye(3),
    protan=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    deutan=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
    tritan=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])


def luminance(linear): return linear @ [.2126, .7152, .0722]
def linear(rgb): return np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4)
def rises(values): return bool((np.diff(values) > 0).all())


@pytest.mark.parametrize("eye", EYES.values(), ids=EYES)
def test_heat_grows_brighter(eye):
    "Alone and over a dark lung; over bright bone, where brightness says little, the upper half is far from grey."
    eye, colours, alpha = np.array(eye).T, HEAT(STEPS)[::8, :3], HEAT(STEPS)[::8, 3:]
    on_lung, on_bone = (linear((1 - alpha)*grey + alpha*colours) for grey in (.2, .7))
    assert rises(luminance((linear(colours) @ eye).clip(0, 1))) and rises(luminance(on_lung @ eye))
    assert (np.abs(on_bone @ eye - linear(.7)).max(1)[16:] > .2).all()


def test_jet_does_not(): assert not rises(luminance(linear(colormaps["jet"](STEPS)[:, :3])))
