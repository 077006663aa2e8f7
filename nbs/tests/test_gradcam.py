"""Heat maps of every kind of image encoder against two other packages, and their colours for eyes that differ."""
import json

from captum.attr import LayerGradCam, LayerIntegratedGradients
from matplotlib import colormaps
import numpy as np
import open_clip
import pytest
from pytorch_grad_cam import GradCAM
from safetensors.torch import save_file
import torch
import torch.nn.functional as F
import transformers as hf

from radiology_clip_mini.gradcam import _as_map, _embed_with_map, _integrated, CELLS, HEAT, METHODS, NoMap, similarity_maps
from radiology_clip_mini.lab.published import load_model
from radiology_clip_mini.models import _stages, image_encoder, learn_tokenizer, StageFeatures

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


# Maps of random networks. A stage is given by hand, so that the choice of stages is tested, too.

NETWORKS = dict( # Side of the images, the stage of Grad-CAM, the stage of integrated, tokens in front
    resnet18=(64, "layer2", "act1", None), convnext_atto=(96, "stages.1", "stages.0", None), test_vit=(64, "blocks.4", "blocks.4", 1),
    swin_tiny_patch4_window7_224=(96, "layers.1", "layers.0", None), vit_small_patch16_dinov3=(64, "blocks.10", "blocks.10", 5))


class Encoder:
    "The image side of a CLIPMini, of a network of timm."
    def __init__(self, net):
        self.image_encoder, self.stages = net.eval(), _stages(getattr(net, "net", net))
        if isinstance(net, StageFeatures): self.stages = [f"net.{name}" for name in self.stages]

    def encode_image(self, images, present=None): return F.normalize(self.image_encoder(images), dim=-1)


def random_case(name, seed=0):
    "A network, two images, a reference, and a unit vector that the second image fits better than the reference."
    torch.manual_seed(seed)
    size = NETWORKS[name][0]
    model, images, reference = Encoder(image_encoder(name, image_size=size)), torch.randn(2, 3, size, size), torch.randn(3, size, size)
    with torch.no_grad(): emb = model.encode_image(torch.cat([images, reference[None]]))
    return model, images, reference, F.normalize(emb[1] - emb[2], dim=0)


def scaled(maps): return (maps / maps.amax((-2, -1), keepdim=True)).detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_grad_cam_is_that_of_the_package_grad_cam(name):
    model, images, _, text = random_case(name)
    size, stage, _, prefix = NETWORKS[name]
    def spread(out):
        if prefix is not None:
            side = round((out.shape[1] - prefix)**.5)
            return out[:, prefix:].reshape(len(out), side, side, -1).permute(0, 3, 1, 2)
        return out.permute(0, 3, 1, 2) if "swin" in name else out
    oracle = GradCAM(model.image_encoder, [model.image_encoder.get_submodule(stage)], reshape_transform=spread)
    oracle(images, [lambda features: F.normalize(features, dim=-1) @ text]*2)
    kept = oracle.activations_and_grads # the package enlarges its maps, so we ask for what it enlarges
    theirs = oracle.get_cam_image(images, oracle.target_layers[0], None, kept.activations[0].numpy(), kept.gradients[0].numpy())
    ours = similarity_maps(model, images, text)
    torch.testing.assert_close(scaled(ours), scaled(torch.from_numpy(theirs).float().clamp(min=0)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_integrated_is_that_of_captum(name):
    "And all numbers of the stage sum to the score's difference from the reference's, with many points on the way."
    model, images, reference, text = random_case(name)
    stage = model.image_encoder.get_submodule(NETWORKS[name][2])
    oracle = LayerIntegratedGradients(lambda x: model.encode_image(x) @ text, stage)
    parts = oracle.attribute(images, reference.expand_as(images), n_steps=8, method="riemann_middle")
    ours, theirs = similarity_maps(model, images, text, "integrated", reference=reference), F.relu(_as_map(parts).sum(1)).detach()
    torch.testing.assert_close(scaled(ours), scaled(theirs), atol=1e-4, rtol=0)
    with torch.no_grad(): score = (model.encode_image(images) - model.encode_image(reference[None])) @ text
    total = _integrated(model, images, text, None, CELLS["integrated"], reference, steps=50).flatten(1).sum(1)
    torch.testing.assert_close(total, score, atol=.02, rtol=0)


@pytest.mark.parametrize("name", [name for name, case in NETWORKS.items() if case[3] is None and "swin" not in name])
def test_grad_cam_is_that_of_captum(name):
    model, images, _, text = random_case(name)
    oracle = LayerGradCam(lambda x: model.encode_image(x) @ text, model.image_encoder.get_submodule(NETWORKS[name][1]))
    theirs = oracle.attribute(images, relu_attributions=True)[:, 0]
    torch.testing.assert_close(scaled(similarity_maps(model, images, text)), scaled(theirs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_cut_to_a_grid_has_maps(name):
    "The fields of a grid are read from the stages themselves, for transformers as well."
    model, images, reference, text = random_case(name)
    shapes = {method: similarity_maps(model, images, text, method, reference=reference).shape for method in METHODS}
    cut = Encoder(StageFeatures(model.image_encoder, 2))
    text = F.normalize(cut.encode_image(images)[1] - cut.encode_image(reference[None])[0], dim=0).detach()
    for method in METHODS:
        maps = similarity_maps(cut, images, text, method, reference=reference)
        against = similarity_maps(cut, images, -text, method, reference=reference)
        assert maps.shape == shapes[method] and (maps + against).amax((1, 2)).min() > 0 # a map may hold nothing but zeros


def test_what_is_no_map_is_refused():
    model, images, _, text = random_case("resnet18")
    model.stages = ["global_pool"] # hands on a vector
    with pytest.raises(NoMap, match="ResNet has no stage that hands on a map"): similarity_maps(model, images, text)


class Pair(torch.nn.Module):
    "A block that hands on a tuple, as some libraries' do."
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x): return self.block(x[0] if isinstance(x, tuple) else x), None


def test_a_tuple_is_as_good_as_a_tensor():
    model, images, reference, text = random_case("test_vit")
    plain = {method: similarity_maps(model, images, text, method, reference=reference) for method in METHODS}
    net = model.image_encoder
    for i in (3, 4): net.blocks[i] = Pair(net.blocks[i])
    last = net.blocks[5].forward
    net.blocks[5].forward = lambda x: last(x[0])
    for method in METHODS: torch.testing.assert_close(similarity_maps(model, images, text, method, reference=reference), plain[method])


# Published models: small random ones, in their libraries' own forms

SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
WORDS = learn_tokenizer(["No pleural effusion or pneumothorax.", "The heart is enlarged."], 100)


def save_transformers(folder, kind):
    text = dict(SMALL, vocab_size=len(WORDS), max_position_embeddings=40, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    vision, processor = dict(SMALL, image_size=64, patch_size=16), dict(size=dict(height=64, width=64))
    if kind == "clip":
        config, images = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24), hf.CLIPImageProcessor(crop_size=64, **processor)
        parts = hf.CLIPModel(config), images
    else:
        config = hf.SiglipConfig(text_config=dict(text, projection_size=32), vision_config=vision)
        parts = hf.SiglipModel(config), hf.SiglipImageProcessor(**processor)
    for part in (*parts, WORDS): part.save_pretrained(folder)


def save_open_clip(folder, vision):
    text = dict(context_length=40, vocab_size=49408, width=32, heads=2, layers=1)
    settings = dict(model_cfg=dict(embed_dim=24, vision_cfg=vision, text_cfg=text), preprocess_cfg=dict(mean=[.5]*3, std=[.25]*3))
    (folder/"open_clip_config.json").write_text(json.dumps(settings))
    save_file(open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict(), folder/"open_clip_model.safetensors")


PUBLISHED = dict( # How to save it, and the map's side by either method
    clip=(lambda folder: save_transformers(folder, "clip"), 4, 4), siglip=(lambda folder: save_transformers(folder, "siglip"), 4, 4),
    open_clip=(lambda folder: save_open_clip(folder, dict(image_size=64, patch_size=16, width=32, layers=3, head_width=16)), 4, 4),
    open_clip_resnet=(lambda folder: save_open_clip(folder, dict(image_size=64, layers=[1, 1, 1, 1], width=16)), 8, 16),
    open_clip_timm=(lambda folder: save_open_clip(folder, dict(timm_model_name="test_vit", timm_pool="", timm_proj="linear", image_size=64)), 4, 4))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_published_model_has_maps(tmp_path, kind):
    torch.manual_seed(0)
    save, *sides = PUBLISHED[kind]
    save(tmp_path)
    model, pixels = load_model(tmp_path), torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    images, reference = model.preprocess(pixels[:2]), model.preprocess(pixels[2])
    with torch.no_grad(): text = F.normalize(model.encode_image(images)[1] - model.encode_image(reference[None])[0], dim=0)
    for method, side in zip(METHODS, sides):
        maps = similarity_maps(model, images, text, method, reference=reference)
        against = similarity_maps(model, images, -text, method, reference=reference)
        assert maps.shape == (2, side, side) and (maps + against).amax((1, 2)).min() > 0 # a map may hold nothing but zeros
    emb, out, stage = _embed_with_map(model, images.requires_grad_(), None, 7)
    assert torch.autograd.grad(emb.sum(), out)[0].abs().max() > 0
    if sides == [4, 4]: assert stage is model.image_encoder.get_submodule(model.stages[-2])
