"""Encoders: features equal to those of each library, and one clear error if loading fails."""

import json

import numpy as np
import pytest
from PIL import Image

from mmrlhf_engine.errors import ConfigError, InputError, MmrlhfError
from mmrlhf_engine.models.encoder import _trained_with_quick_gelu, load_encoder

torch = pytest.importorskip("torch")


def noise(size: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def vit(folder, name: str) -> str:
    """A tiny random vision model of transformers without text, saved as a folder."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=2)
    processor.save_pretrained(folder)
    return f"transformers:{folder}"


def test_a_clip_of_transformers_gives_its_image_features(tiny_encoder):
    from transformers import AutoImageProcessor, AutoModel

    encoder = load_encoder(tiny_encoder)
    assert (encoder.size, encoder.fit, encoder.filter) == (32, "crop", "bicubic")
    pixels = noise(32)
    folder = tiny_encoder.removeprefix("transformers:")
    inputs = AutoImageProcessor.from_pretrained(folder)(list(pixels), return_tensors="pt")
    with torch.inference_mode():
        output = AutoModel.from_pretrained(folder).eval().get_image_features(**inputs)
    expected = getattr(output, "pooler_output", output).numpy()
    features = encoder.encode(pixels)
    assert features.dtype == np.float32
    assert features.shape == (3, encoder.dimension) == (3, 24)
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "pooled"), [("ViT", True), ("ViTMSN", False)])
def test_a_vision_model_gives_its_pooled_output_or_the_mean_of_its_tokens(tmp_path, name, pooled):
    from transformers import AutoModel

    encoder = load_encoder(vit(tmp_path, name))
    assert (encoder.size, encoder.fit, encoder.filter) == (32, "squash", "bilinear")
    pixels = noise(32)
    with torch.inference_mode():
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        output = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=images)
    expected = output.pooler_output if pooled else output.last_hidden_state.mean(dim=1)
    np.testing.assert_allclose(encoder.encode(pixels), expected.numpy(), atol=1e-5)


def test_an_open_clip_model_with_weights_of_a_file(tmp_path):
    import open_clip

    settings = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 16,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(settings), encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-clip")
    torch.save(model.state_dict(), tmp_path / "weights.pt")

    encoder = load_encoder(f"open_clip:tiny-clip/{tmp_path / 'weights.pt'}")
    assert (encoder.size, encoder.fit, encoder.filter) == (32, "crop", "bicubic")
    pixels = noise(32)
    images = torch.stack([preprocess(Image.fromarray(picture)) for picture in pixels])
    with torch.inference_mode():
        expected = model.eval().encode_image(images).numpy()
    np.testing.assert_allclose(encoder.encode(pixels), expected, atol=1e-5)


def test_openai_weights_use_the_activation_they_were_trained_with():
    assert _trained_with_quick_gelu("ViT-B-32", "openai")
    assert not _trained_with_quick_gelu("ViT-B-32", "laion2b_s34b_b79k")
    assert not _trained_with_quick_gelu("ViT-B-32", "weights.pt")


def test_lite0_finds_views_of_one_scene_alike_and_prints_nothing(capfd):
    from sklearn.datasets import load_sample_images

    encoder = load_encoder("lite0")
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    width, height = china.size
    views = [china, china.crop((width // 8, height // 8, width, height)), flower]
    pixels = np.stack([np.asarray(view.resize((224, 224))) for view in views])
    features = encoder.encode(pixels)
    assert features.shape == (3, encoder.dimension) == (3, 1280)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.8
    assert unit[0] @ unit[2] < 0.5
    assert capfd.readouterr().out == ""


def test_features_do_not_depend_on_the_rest_of_the_batch(tiny_encoder):
    encoder = load_encoder(tiny_encoder)
    pixels = noise(32, count=7)
    alone = np.concatenate([encoder.encode(pixels[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(encoder.encode(pixels), alone, atol=1e-5)
    assert encoder.encode(pixels[:0]).shape == (0, 24)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_directions(tiny_encoder):
    from transformers import AutoModel

    encoder = load_encoder(tiny_encoder)
    assert encoder.device == "cuda"
    pixels = noise(32)
    shape = (1, 3, 1, 1)
    mean, deviation = (torch.tensor(v).view(shape) for v in (encoder.mean, encoder.deviation))
    model = AutoModel.from_pretrained(tiny_encoder.removeprefix("transformers:")).eval()
    with torch.inference_mode():
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) - mean) / deviation
        output = model.get_image_features(pixel_values=images)
    expected = getattr(output, "pooler_output", output).numpy()
    features = encoder.encode(pixels)
    cosines = (features * expected).sum(1) / (
        np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    )
    assert cosines.min() > 0.999


@pytest.mark.parametrize("name", ["lite1", "open_clip", "open_clip:", "clip:ViT-B-32", ""])
def test_a_name_of_no_known_form_is_refused(name):
    with pytest.raises(ConfigError, match=r"open_clip:MODEL/WEIGHTS"):
        load_encoder(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-32/openai", "ViT-B-32/openai: cannot be loaded"),
        ("open_clip:ViT-B-32/no_such_tag", "no_such_tag"),
        ("open_clip:ViT-B-32", "the weights are missing"),
        ("open_clip:NoSuchModel/openai", "NoSuchModel"),
        ("open_clip:hf-hub:nobody/nothing", "cannot be loaded"),
        ("transformers:nobody/nothing", "nobody/nothing"),
        ("transformers:{folder}", "cannot be loaded"),
        ("open_clip:ViT-S-32-alt/{folder}/broken.pt", "cannot be loaded"),
    ],
)
def test_weights_that_cannot_be_loaded_are_one_error_that_names_the_alternatives(
    tmp_path, monkeypatch, capfd, name, message
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_url", _no_network)
    (tmp_path / "broken.pt").write_bytes(b"not weights")
    with pytest.raises(MmrlhfError) as error:
        load_encoder(name.format(folder=tmp_path))
    assert isinstance(error.value, InputError)
    text = str(error.value)
    assert message.format(folder=tmp_path) in text
    assert len(text) < 800
    for alternative in ("lite0", "precomputed:FILE.npy", "transformers:FOLDER"):
        assert alternative in text
    assert capfd.readouterr().err == ""


def _no_network(*arguments, **options):
    raise OSError("no network in tests")
