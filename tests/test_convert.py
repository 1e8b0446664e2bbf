"""Converted InternVL checkpoints against a forward pass written here from the published layout, in plain torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import gelu, layer_norm, linear, silu
from transformers.utils import is_sentencepiece_available, is_torchvision_available

from mmprm_lib import convert, convert_config, convert_tokens, images, models, released, scoring, steps
from mmprm_lib.generation import Request, Sampling, TransformersGenerator
from mmprm_lib.world import vocabulary
from tests import families
from tests.doubles import problem, solution

needs_torchvision = pytest.mark.skipif(
    not is_torchvision_available(), reason="InternVL's processor needs torchvision, which is not installed"
)
needs_sentencepiece = pytest.mark.skipif(
    not is_sentencepiece_available(), reason="reading tokenizer.model needs sentencepiece, which is not installed"
)
KINDS = ("Qwen2ForCausalLM", "InternLM2ForCausalLM")
ADDED = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<prm>"]
WIDTH, HEADS, KV, HEAD, INNER, LAYERS = 32, 4, 2, 8, 48, 2
EYE, EYE_HEADS, EYE_INNER, SIDE, PATCH = 16, 2, 24, 56, 14  # 4 x 4 patches, shuffled into 2 x 2 tokens
VISION = {"hidden_size": EYE, "intermediate_size": EYE_INNER, "num_hidden_layers": LAYERS, "image_size": SIDE,
          "num_attention_heads": EYE_HEADS, "patch_size": PATCH, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
          "norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False}  # fmt: skip


def config_of(kind, vocab, **more):
    """config.json as these checkpoints have it."""
    text = {"architectures": [kind], "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV, "vocab_size": vocab, "hidden_act": "silu",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "bias": False,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "tie_word_embeddings": False}  # fmt: skip
    return {"architectures": ["InternVLChatModel"], "auto_map": {"AutoModel": "theirs.Model"}, "llm_config": text,
            "model_type": "internvl_chat", "template": "internvl2_5", "ps_version": "v2", "select_layer": -1,
            "downsample_ratio": 0.5, "dynamic_image_size": True, "use_thumbnail": True, "min_dynamic_patch": 1,
            "max_dynamic_patch": 12, "force_image_size": SIDE, "vision_config": dict(VISION), "pad2square": False,
            "use_backbone_lora": 0, "use_llm_lora": 0, "torch_dtype": "float32", **more}  # fmt: skip


def weights_of(kind, vocab):
    """{name: tensor} of a random checkpoint, by the published names."""
    torch.manual_seed(0)
    eye = "vision_model.encoder.layers"
    sizes = {
        "vision_model.embeddings.class_embedding": (1, 1, EYE),
        "vision_model.embeddings.position_embedding": (1, 17, EYE),
        "vision_model.embeddings.patch_embedding.weight": (EYE, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": (EYE,),
        "mlp1.0.weight": (4 * EYE,), "mlp1.0.bias": (4 * EYE,), "mlp1.1.weight": (WIDTH, 4 * EYE),
        "mlp1.1.bias": (WIDTH,),
        "mlp1.3.weight": (WIDTH, WIDTH), "mlp1.3.bias": (WIDTH,), "language_model.model.norm.weight": (WIDTH,),
    }  # fmt: skip
    for i in range(LAYERS):
        for name, size in {
            "ls1": (EYE,), "ls2": (EYE,), "norm1.weight": (EYE,), "norm1.bias": (EYE,), "norm2.weight": (EYE,),
            "norm2.bias": (EYE,), "attn.qkv.weight": (3 * EYE, EYE), "attn.qkv.bias": (3 * EYE,),
            "attn.proj.weight": (EYE, EYE), "attn.proj.bias": (EYE,), "mlp.fc1.weight": (EYE_INNER, EYE),
            "mlp.fc1.bias": (EYE_INNER,), "mlp.fc2.weight": (EYE, EYE_INNER), "mlp.fc2.bias": (EYE,),
        }.items():  # fmt: skip
            sizes[f"{eye}.{i}.{name}"] = size
        if kind == "InternLM2ForCausalLM":
            layer = {"attention.wqkv.weight": ((HEADS + 2 * KV) * HEAD, WIDTH), "attention.wo.weight": (WIDTH, WIDTH),
                     "feed_forward.w1.weight": (INNER, WIDTH), "feed_forward.w2.weight": (WIDTH, INNER),
                     "feed_forward.w3.weight": (INNER, WIDTH), "attention_norm.weight": (WIDTH,),
                     "ffn_norm.weight": (WIDTH,)}  # fmt: skip
        else:
            layer = {"mlp.gate_proj.weight": (INNER, WIDTH), "mlp.up_proj.weight": (INNER, WIDTH),
                     "mlp.down_proj.weight": (WIDTH, INNER), "self_attn.o_proj.weight": (WIDTH, WIDTH),
                     "input_layernorm.weight": (WIDTH,), "post_attention_layernorm.weight": (WIDTH,)}  # fmt: skip
            for letter, heads in (("q", HEADS), ("k", KV), ("v", KV)):
                layer[f"self_attn.{letter}_proj.weight"] = (heads * HEAD, WIDTH)
                layer[f"self_attn.{letter}_proj.bias"] = (heads * HEAD,)
        sizes |= {f"language_model.model.layers.{i}.{name}": size for name, size in layer.items()}
    ends = ("model.tok_embeddings", "output") if kind == "InternLM2ForCausalLM" else ("model.embed_tokens", "lm_head")
    sizes |= {f"language_model.{name}.weight": (vocab, WIDTH) for name in ends}
    return {name: torch.randn(size) * (0.2 if len(size) > 1 else 0.7) for name, size in sizes.items()}


# -- the forward pass, as modeling_intern_vit.py, modeling_internlm2.py and modeling_internvl_chat.py state it


def image_features(w, pixels):
    """(tile, 4, width): InternViT, its patches shuffled 2 x 2 into one token, and the projector."""
    x = torch.nn.functional.conv2d(
        pixels, w["vision_model.embeddings.patch_embedding.weight"], w["vision_model.embeddings.patch_embedding.bias"],
        stride=PATCH,
    ).flatten(2).transpose(1, 2)  # fmt: skip
    first = w["vision_model.embeddings.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + w["vision_model.embeddings.position_embedding"]
    for i in range(LAYERS):
        start = f"vision_model.encoder.layers.{i}."
        p = {k.removeprefix(start): v for k, v in w.items() if k.startswith(start)}
        y = layer_norm(x, (EYE,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        q, k, v = linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"]).split(EYE, -1)
        heads = []
        for h in range(EYE_HEADS):
            at = slice(h * EYE // EYE_HEADS, (h + 1) * EYE // EYE_HEADS)
            scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(EYE // EYE_HEADS)
            heads.append(scores.softmax(-1) @ v[..., at])
        x = x + linear(torch.cat(heads, -1), p["attn.proj.weight"], p["attn.proj.bias"]) * p["ls1"]
        y = layer_norm(x, (EYE,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = linear(gelu(linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"])), p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        x = x + y * p["ls2"]
    grid = x[:, 1:].reshape(len(x), 4, 4, EYE)
    tokens = [
        torch.cat([grid[:, 2 * r, 2 * c], grid[:, 2 * r, 2 * c + 1], grid[:, 2 * r + 1, 2 * c],
                   grid[:, 2 * r + 1, 2 * c + 1]], -1)
        for r in range(2) for c in range(2)
    ]  # fmt: skip
    y = layer_norm(torch.stack(tokens, 1), (4 * EYE,), w["mlp1.0.weight"], w["mlp1.0.bias"], 1e-5)
    return linear(gelu(linear(y, w["mlp1.1.weight"], w["mlp1.1.bias"])), w["mlp1.3.weight"], w["mlp1.3.bias"])


def rms(x, weight):
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def turned(x, n, longest, factor=2.0):
    """Rotary positions of (token, heads, HEAD), with InternLM2's dynamic base beyond `longest` tokens."""
    base = 1000000.0
    if n > longest:
        base *= (factor * n / longest - (factor - 1)) ** (HEAD / (HEAD - 2))
    angle = torch.outer(torch.arange(n).float(), base ** -(torch.arange(0, HEAD, 2) / HEAD)).repeat(1, 2)[:, None]
    half = torch.cat([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1)
    return x * angle.cos() + half * angle.sin()


def logits_of(w, kind, ids, pixels, context, longest=4096):
    """(token, vocabulary) of a text with its tiles."""
    fused = kind == "InternLM2ForCausalLM"
    x = w[f"language_model.model.{'tok_embeddings' if fused else 'embed_tokens'}.weight"][ids].clone()
    x[torch.tensor(ids) == context] = image_features(w, pixels).reshape(-1, WIDTH)
    n = len(ids)
    ahead = torch.full((n, n), -torch.inf).triu(1)
    for i in range(LAYERS):
        start = f"language_model.model.layers.{i}."
        p = {k.removeprefix(start): v for k, v in w.items() if k.startswith(start)}
        y = rms(x, p["attention_norm.weight" if fused else "input_layernorm.weight"])
        if fused:  # for each key head: its query heads, itself, its value head
            groups = linear(y, p["attention.wqkv.weight"]).reshape(n, KV, HEADS // KV + 2, HEAD)
            q, k, v = groups[:, :, :-2].reshape(n, HEADS, HEAD), groups[:, :, -2], groups[:, :, -1]
        else:
            q, k, v = (
                linear(y, p[f"self_attn.{c}_proj.weight"], p[f"self_attn.{c}_proj.bias"]).reshape(n, -1, HEAD)
                for c in "qkv"
            )
        q, k = turned(q, n, longest), turned(k, n, longest)
        seen = []
        for h in range(HEADS):
            g = h // (HEADS // KV)
            seen.append((q[:, h] @ k[:, g].T / math.sqrt(HEAD) + ahead).softmax(-1) @ v[:, g])
        x = x + linear(torch.cat(seen, -1), p["attention.wo.weight" if fused else "self_attn.o_proj.weight"])
        y = rms(x, p["ffn_norm.weight" if fused else "post_attention_layernorm.weight"])
        gate, up, down = (
            p[name] for name in (("feed_forward.w1.weight", "feed_forward.w3.weight", "feed_forward.w2.weight") if fused
                                 else ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"))
        )  # fmt: skip
        x = x + linear(silu(linear(y, gate)) * linear(y, up), down)
    x = rms(x, w["language_model.model.norm.weight"])
    return linear(x, w[f"language_model.{'output' if fused else 'lm_head'}.weight"])


# -- a folder as it is published


def write_tokens(folder: Path, kind: str) -> int:
    """The number of tokens; writes the files of a tokenizer: vocab.json and merges.txt, or tokenizer.json."""
    llama = kind == "InternLM2ForCausalLM"
    like = (hf.LlamaTokenizer() if llama else hf.Qwen2Tokenizer())._tokenizer
    named = ["<unk>", "<s>", "</s>"] if llama else []
    words = families.trained(like, named, "fallback" if llama else "level")
    added = {word: len(words["vocab"]) + i for i, word in enumerate(["<|endoftext|>"] * (not llama) + ADDED)}
    decoder = {str(index): {"content": word, "special": True, "normalized": False} for word, index in added.items()}
    marks = {"eos_token": "</s>", "pad_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"} if llama else {
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}  # fmt: skip
    config = {"added_tokens_decoder": decoder, "tokenizer_class": "InternLM2Tokenizer" if llama else "Qwen2Tokenizer",
              "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}, "add_bos_token": llama, **marks}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps(added))
    if llama:
        made = hf.LlamaTokenizer(**words, add_bos_token=True, add_prefix_space=False)
        made.add_tokens([hf.AddedToken(word, special=True, normalized=False) for word in added], special_tokens=True)
        made._tokenizer.save(str(folder / "tokenizer.json"))
    else:
        (folder / "vocab.json").write_text(json.dumps(words["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in words["merges"]))
    return len(words["vocab"]) + len(added)


def write(folder: Path, kind: str = KINDS[0], change=None, text=(), **config) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint that is written into `folder`, in two shards; `change` may change them before.

    `text` and `config` go into config.json.
    """
    folder.mkdir(exist_ok=True)
    vocab = write_tokens(folder, kind)
    stated = config_of(kind, vocab, **config)
    stated["llm_config"] |= dict(text)
    (folder / "config.json").write_text(json.dumps(stated))
    (folder / "theirs.py").write_text("raise SystemExit('code of the checkpoint has run')\n")
    w = weights_of(kind, vocab)
    if change:
        change(w)
    names, shards = sorted(w), {}
    for n, part in enumerate((names[::2], names[1::2]), start=1):  # every layer lies in both
        save_file({name: w[name] for name in part}, folder / f"model-0000{n}-of-00002.safetensors")
        shards |= dict.fromkeys(part, f"model-0000{n}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return w


def weights_alone(source: Path, target: Path, shard_bytes: int = 2 * 10**9):
    """The converted model without its processor, which needs torchvision."""
    theirs = convert.read_config(source)
    config = convert.new_config(theirs, tied=False)
    target.mkdir()
    convert.write_weights(convert.weight_files(source), config, target, shard_bytes)
    config.save_pretrained(target)
    return hf.AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32).eval()


@pytest.mark.parametrize("n_words", [9, 60])  # 60: more than the 48 positions that it was trained for
@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_computes_what_the_original_computes(tmp_path, kind, n_words):
    w = write(tmp_path / "theirs", kind, text={"max_position_embeddings": 48})
    model = weights_alone(tmp_path / "theirs", tmp_path / "ours", shard_bytes=20_000)
    context = model.config.image_token_id = 5
    pixels = torch.randn(2, 3, SIDE, SIDE)
    ids = [7, *[context] * 8, *torch.randint(10, 90, (n_words,)).tolist()]
    with torch.inference_mode():
        made = model(input_ids=torch.tensor([ids]), pixel_values=pixels, output_hidden_states=True)
        expected = logits_of(w, kind, ids, pixels, context, longest=48)
        torch.testing.assert_close(model.model.get_image_features(pixels).pooler_output, image_features(w, pixels),
                                   atol=1e-5, rtol=0)  # fmt: skip
    torch.testing.assert_close(made.logits[0], expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1
    sizes = [file.stat().st_size for file in (tmp_path / "ours").glob("*.safetensors")]
    assert len(sizes) > 3 and sum(tensor.nbytes for tensor in w.values()) < sum(sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_an_output_matrix_of_its_own_has_the_embeddings(tmp_path, kind):
    name = "language_model.output.weight" if kind == KINDS[1] else "language_model.lm_head.weight"
    write(tmp_path, kind, change=lambda w: w.pop(name))
    theirs = convert.read_config(tmp_path)
    with pytest.raises(ValueError, match="holds no language_model.lm_head.weight: a shard is missing"):
        convert.write_weights(convert.weight_files(tmp_path), convert.new_config(theirs, True), tmp_path, 10**9)
    theirs["llm_config"]["tie_word_embeddings"] = True
    config = convert.new_config(theirs, True)
    assert config.tie_word_embeddings and convert.write_weights(convert.weight_files(tmp_path), config, tmp_path, 10**9)


def test_rows_of_a_fused_projection_go_to_their_heads():
    rows = torch.arange(16.0)[:, None]  # two groups of two query heads, a key head and a value head, of two rows each
    parts = dict(convert.parted("{}_proj", rows, 2, 2))
    assert {name: part[:, 0].tolist() for name, part in parts.items()} == {
        "q_proj": [0, 1, 2, 3, 8, 9, 10, 11], "k_proj": [4, 5, 12, 13], "v_proj": [6, 7, 14, 15]
    }  # fmt: skip
    thirds = dict(convert.parted("{}_proj", rows[:6], 1, 2))
    assert {name: part[:, 0].tolist() for name, part in thirds.items()} == {
        "q_proj": [0, 1], "k_proj": [2, 3], "v_proj": [4, 5]
    }  # fmt: skip


# -- the whole


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A problem with a picture of two tiles."""
    root = tmp_path_factory.mktemp("asked")
    path, digest = images.store(images.png(Image.effect_noise((112, 56), 90).convert("RGB")), ".png", root)
    made = problem("p", question="Which bar <prm> is it?", image=path, image_sha256=digest)
    made._root = root
    return made


@needs_torchvision
@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_checkpoint_scores_what_the_original_scores(tmp_path, asked, kind):
    """MM-PRM's and VisualPRM's layouts, literally; scores are those of the forward pass above at their decisions."""
    w = write(tmp_path / "theirs", kind, system_message="Be <|strict|> {{ 1 }}\n'\"")
    made = convert.convert(tmp_path / "theirs", tmp_path / "ours")
    assert made["tensors"] == len(convert.shapes(hf.AutoConfig.from_pretrained(tmp_path / "ours")))
    assert made["system_message"] == "Be <|strict|> {{ 1 }}\n'\""
    assert not list(tmp_path.glob("*.part")) and not list((tmp_path / "ours").glob("*.py"))
    said = (tmp_path / "ours" / "tokenizer_config.json").read_text() + (tmp_path / "ours" / "config.json").read_text()
    assert "auto_map" not in said
    layouts = {
        "process": ({"labels": ["Yes", "No"], "turn": "open", "separator": ""},
                    "<|im_start|>user\n<|im_start|>assistant\n"
                    "<IMG_CONTEXT>\nQuestion: Which bar < prm> is it?\nProcess: ",
                    ["a<prm>", "b<prm>"], "<prm>"),
        "chat": ({"labels": ["+", "-"]},
                 "<|im_start|>user\n### Question:\n<IMG_CONTEXT>\nWhich bar < prm> is it?\n\n### Solution Process:\n",
                 ["a<|im_end|>\n<|im_start|>assistant\n",
                  "+<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"], "\n"),
    }  # fmt: skip
    for form, (choices, prompt, pieces, last) in layouts.items():
        choices = {"format": form, "system_file": "checkpoint", **choices}
        scorer = released.scorer_at("theirs", "ours", tmp_path / "ours", {"dtype": torch.float32}, choices)
        system = "<|im_start|>system\nBe <|strict|> {{ 1 }}\n'\"<|im_end|>\n"
        layout = steps.TEMPLATES[form](asked, ["a", "b"], scorer.encoder.processor, scorer.form)
        assert (layout.prompt, layout.pieces) == (system + prompt, pieces)
        row = scorer.encoder.encode(asked, ["a", "b"], "")
        tokenizer = scorer.encoder.processor.tokenizer
        assert tokenizer.decode([row.ids[-1]]) == last and row.positions[-1] == len(row.ids) - 1
        begun = tokenizer.convert_ids_to_tokens(row.ids[:2])
        assert begun == (["<s>", "<|im_start|>"] if kind == KINDS[1] else ["<|im_start|>", begun[1]])
        context = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        assert row.ids.count(context) == 3 * 4, "two tiles and a thumbnail, of four tokens each"
        pixels = scorer.encoder.prompt(asked, row.text).images["pixel_values"]
        z = logits_of(w, kind, row.ids, pixels, context)[row.positions][:, scoring.label_ids(scorer.form, tokenizer)]
        (scores,) = scorer.score(asked, [solution("s", ("a", "b"), problem_id="p")])
        np.testing.assert_allclose(scores, z.softmax(-1)[:, 0], atol=1e-5)


@needs_torchvision
def test_without_a_system_turn_the_template_writes_that_of_internvl(tmp_path, asked):
    write(tmp_path / "theirs", system_message=None)
    convert.convert(tmp_path / "theirs", tmp_path / "ours")
    model, processor = models.load(tmp_path / "ours")
    assert steps.policy_prompt(asked, processor) == (
        "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
        "<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nWhich bar < prm> is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    generator = TransformersGenerator(model, processor)
    assert steps.end_of_turn(processor) in generator.eos
    ((_, (sample,)),) = generator.sample([Request(asked, ())], 1, Sampling(max_new_tokens=3))
    assert not sample.error and sample.n_tokens > 0


@needs_torchvision
def test_pictures_have_the_tiles_that_internvl_has(tmp_path):
    """At 448 pixels, patches of 14: 16 x 16 tokens a tile, at most 12 tiles, and a thumbnail if there are several."""
    eye = VISION | {"image_size": 448}
    write(tmp_path, vision_config=eye, force_image_size=448)
    theirs = convert.read_config(tmp_path)
    config = convert.new_config(theirs, False)
    processor = convert.new_processor(tmp_path, theirs, config)
    # 2 : 1 is 2 x 1 tiles, or 4 x 2 for a picture of more than half of their area; 1.33 is 4 x 3 in 12; 0.1 is 1 x 10
    sizes = {(448, 448): 1, (896, 448): 3, (2000, 1000): 9, (640, 480): 13, (300, 3000): 11}
    for size, n in sizes.items():
        ids = processor(text=["<IMG_CONTEXT>"], images=[Image.new("RGB", size)], return_tensors="pt")["input_ids"][0]
        assert (ids == config.image_token_id).sum() == 256 * n, size
        assert processor.tokenizer.convert_ids_to_tokens(ids.tolist())[:: len(ids) - 1] == ["<img>", "</img>"]
    theirs["dynamic_image_size"] = False
    one = convert.new_processor(tmp_path, theirs, config)
    assert one(text=["<IMG_CONTEXT>"], images=[Image.new("RGB", (2000, 1000))])["input_ids"][0].count(
        config.image_token_id) == 256  # fmt: skip


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
GREY = 1 / 255 / STD  # one of 256 levels of grey, in normalised pixels, by colour


def grid_of(width, height, most, side):
    """(columns, rows) by InternVL's rule, in exact numbers: of all grids of 1 to `most` tiles the one whose sides have
    the ratio nearest the picture's; of several as near, the largest that the picture fills by more than a half.
    """
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    nearest = min(abs(Fraction(width, height) - Fraction(c, r)) for c, r in grids)
    near = sorted((c * r, c, r) for c, r in grids if abs(Fraction(width, height) - Fraction(c, r)) == nearest)
    fit = [(c, r) for area, c, r in near[1:] if width * height > side * side * area / 2]
    return fit[-1] if fit else near[0][1:]


def cut_as_published(picture, most, side):
    """(tile, 3, side, side): the picture stretched over its grid by Pillow, its tiles row by row from the upper left,
    and after them, if there are several, the whole picture in one tile.
    """
    columns, rows = grid_of(*picture.size, most, side)
    stretched = np.asarray(picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC))
    tiles = [band[:, c * side : (c + 1) * side] for band in np.split(stretched, rows) for c in range(columns)]
    if len(tiles) > 1:
        tiles.append(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)))
    return ((np.stack(tiles) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


def drawing(size):
    """A picture no two parts of which are alike: slopes of colour, coarse blots, sharp lines."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    blots = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8)).resize(size)
    colours = np.stack([x * 255, y * 255, np.asarray(blots)], -1)
    colours[(np.arange(size[1]) % 37 < 2)] = 20
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


@needs_torchvision
@pytest.mark.parametrize(("most", "side"), [(12, 112), (6, 112), (1, 112), (12, 448)])
def test_pictures_are_cut_as_internvl_cuts_them(tmp_path, most, side):
    """Grid, order of tiles, place of the thumbnail, resampling and normalisation, pixel by pixel.

    The processor resamples with torchvision, InternVL with Pillow. Both do it in one direction after the other and
    round to 256 levels each time, not always alike: by 3 levels where a sharp line is stretched, by 0.05 on average.
    """
    write(tmp_path, vision_config=VISION | {"image_size": side}, force_image_size=side, max_dynamic_patch=most)
    theirs = convert.read_config(tmp_path)
    processor = convert.new_processor(tmp_path, theirs, convert.new_config(theirs, False))
    sizes = [(112, 112), (50, 60), (448, 224), (224, 448), (500, 250), (640, 480), (150, 700), (301, 233), (1000, 999)]
    sizes += [(336, 112), (90, 600), (420, 280), (113, 339), (1200, 300), (250, 200)]
    sizes = sizes if side == 112 else [(640, 480), (2400, 1700)]
    for size in sizes:
        picture = drawing(size)
        made = processor(text=["<IMG_CONTEXT>"], images=[picture], return_tensors="pt")["pixel_values"].numpy()
        wanted = cut_as_published(picture, most, side)
        assert made.shape == wanted.shape, size
        far = np.abs(made - wanted) / GREY[:, None, None]
        assert far.max() < 4.01 and far.mean() < 0.1, (size, far.max(), far.mean())
        # whatever stands in another place is farther by far
        others = [np.roll(wanted, 1, 0), wanted[[1, 0, *range(2, len(wanted))]]] if len(wanted) > 1 else []
        assert all(np.abs(made - other).mean() / GREY.mean() > 1 for other in others), size


@needs_torchvision
def test_the_command_makes_a_folder_or_nothing(tmp_path, capsys):
    write(tmp_path / "theirs")
    theirs, ours, other = (str(tmp_path / name) for name in ("theirs", "ours", "other"))
    said = subprocess.run(
        [sys.executable, "-m", "mmprm_lib.convert", theirs, ours], capture_output=True, text=True, check=True
    ).stdout
    assert "ours: 73 tensors, 0.00 GB" in said and "system_file: checkpoint): 你是书生" in said
    before = sorted((tmp_path / "ours").iterdir())
    assert convert.main([theirs, ours]) == 2
    assert capsys.readouterr().err.endswith("ours is there already: name a new folder\n")
    assert sorted((tmp_path / "ours").iterdir()) == before
    write(tmp_path / "theirs", change=lambda w: w.pop("mlp1.3.bias"))
    assert convert.main([theirs, other]) == 2
    assert "holds no multi_modal_projector.linear_2.bias: a shard is missing" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    write(tmp_path / "theirs")  # what the attempt left behind is in nobody's way
    assert (tmp_path / "other.part" / convert.MARK).is_file()
    assert convert.main([theirs, other]) == 0 and (tmp_path / "other").is_dir()
    assert not (tmp_path / "other.part").exists() and not (tmp_path / "other" / convert.MARK).exists()


@needs_torchvision
@pytest.mark.parametrize("name", ["theirs", "mine.part"])
def test_a_folder_that_no_attempt_left_is_never_deleted(tmp_path, capsys, name):
    """"mine.part" is SOURCE itself."""
    write(tmp_path / name)
    if name == "theirs":
        (tmp_path / "mine.part").mkdir()
        (tmp_path / "mine.part" / "thesis.tex").write_text("years of work")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert convert.main([str(tmp_path / name), str(tmp_path / "mine")]) == 2
    said = capsys.readouterr().err
    assert "mine.part is there already, and is no rest of an earlier attempt: move it elsewhere" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_only_a_marked_or_empty_folder_makes_place(tmp_path):
    part = tmp_path / "mine.part"
    for make in (part.touch, lambda: part.symlink_to(tmp_path / "other"), lambda: part.symlink_to(tmp_path / "none")):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / convert.MARK).touch()
        make()
        with pytest.raises(FileExistsError, match="mine.part is there already"):
            convert._new_part(tmp_path / "mine", tmp_path / "source")
        part.unlink()
    part.mkdir()
    for left in ("", "model-00001.safetensors"):
        assert convert._new_part(tmp_path / "mine", tmp_path / "source") == part
        assert [path.name for path in part.iterdir()] == [convert.MARK]
        (part / (left or "config.json")).touch()
    with pytest.raises(FileExistsError, match="mine.part is there already"):
        convert._new_part(tmp_path / "mine", part / "source")


def test_without_torchvision_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "is_torchvision_available", lambda: False)
    with pytest.raises(ValueError, match="the processor needs torchvision: pip install the release"):
        convert.convert(tmp_path, tmp_path / "ours")
    assert not list(tmp_path.iterdir())


# -- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "internvl"}, "model_type of config.json is 'internvl'; only 'internvl_chat' can be converted"),
        ({"template": "phi3-chat"}, "template of config.json is 'phi3-chat'; only 'internvl2_5' can be converted"),
        ({"ps_version": "v1"}, "ps_version of config.json is 'v1'; only 'v2' can be converted"),
        ({"select_layer": -4}, "select_layer of config.json is -4; only -1 can be converted"),
        ({"use_llm_lora": 16}, "use_llm_lora of config.json is 16; only 0 can be converted"),
        ({"downsample_ratio": 0.3}, "downsample_ratio of config.json is 0.3; 1 / n of 4 is needed"),
        ({"downsample_ratio": "0.5"}, "downsample_ratio of config.json is '0.5'"),
        ({"dynamic_image_size": None}, "dynamic_image_size of config.json is None; only True or False can be"),
        ({"min_dynamic_patch": 0}, "min_dynamic_patch and max_dynamic_patch of config.json are 0 and 12; they must be"),
        ({"max_dynamic_patch": None}, "max_dynamic_patch of config.json are 1 and None"),
        ({"min_dynamic_patch": 13}, "config.json are 13 and 12; they must be whole, from 1 to 1000, the least first"),
        ({"vision_config": 5}, "states no vision_config.hidden_size"),
        ({"vision_config": VISION | {"patch_size": "14"}}, "tiles of 56 pixels and patches of '14', which must fit"),
        ({"vision_config": VISION | {"num_hidden_layers": 10**9}}, "'num_hidden_layers' is more than 1000"),
        ({"force_image_size": 448}, "force_image_size is not the 56 pixels of vision_config"),
        ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "states no llm_config.hidden_size, llm_config.interm"),
    ],
)
def test_what_the_class_cannot_compute_is_refused_by_name(tmp_path, change, message):
    write(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        convert.read_config(tmp_path)


@pytest.mark.parametrize("key", ["downsample_ratio", "dynamic_image_size", "min_dynamic_patch", "max_dynamic_patch"])
def test_what_says_how_pictures_are_cut_must_be_stated(tmp_path, key, monkeypatch, capsys):
    write(tmp_path / "theirs")
    stated = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del stated[key]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(stated))
    monkeypatch.setattr(convert, "is_torchvision_available", lambda: True)
    assert convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 2
    assert capsys.readouterr().err.endswith(f"theirs: config.json states no {key}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("text", [
    {"hidden_size": "32"}, {"hidden_size": None}, {"num_attention_heads": 0}, {"rope_scaling": [1]}, {"rope_theta": []},
    {"hidden_act": 5}, {"rope_scaling": {"type": "no such"}}, {"rms_norm_eps": {}},
])  # fmt: skip
def test_a_value_of_another_kind_is_one_error(tmp_path, text):
    write(tmp_path, text=text)
    with pytest.raises(ValueError, match="config.json has a value that the class does not take .*: fetch it again"):
        convert.shapes(convert.new_config(convert.read_config(tmp_path), False))


def test_a_language_model_of_another_kind_is_refused(tmp_path):
    for text, message in (
        ({"architectures": ["Phi3ForCausalLM"]}, "is .Phi3ForCausalLM.; Qwen2ForCausalLM and InternLM2ForCausalLM can"),
        ({"rope_pos_id_version": "v2pe"}, "rope_pos_id_version 'v2pe' cannot be converted"),
    ):
        write(tmp_path, text=text)
        with pytest.raises(ValueError, match=message):
            convert.read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"language_model.extra": torch.ones(2)}), "language_model.extra is \\(2,\\): the conf"),
        (lambda w: w.update({"base_model.x": torch.ones(2)}), "holds 'base_model.x', which is no weight of InternVL"),
        (lambda w: w.update({"vision_model.encoder.layers.0.attn.x": torch.ones(2)}), "is no weight of InternVL"),
        (lambda w: w.update({"mlp1.1.weight": torch.ones(3, 3)}),
         "linear_1.weight is \\(3, 3\\): \\(32, 64\\) is needed"),
        (lambda w: w.update({"vision_model.encoder.layers.1.attn.qkv.weight": torch.ones(33, 16)}),
         "attention.qkv_proj.weight has 33 rows, no multiple of 1 x 16"),
        (lambda w: w.pop("mlp1.3.bias"), "holds no multi_modal_projector.linear_2.bias: a shard is missing"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    write(tmp_path, change=change)
    config = convert.new_config(convert.read_config(tmp_path), False)
    with pytest.raises(ValueError, match=message):
        convert.write_weights(convert.weight_files(tmp_path), config, tmp_path, 10**9)


def test_files_that_are_missing_broken_or_pickled_are_named(tmp_path):
    write(tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match="holds no model-00002-of-00002.safetensors: fetch it"):
        convert.weight_files(tmp_path)
    files[1].write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is no safetensors file"):
        convert.write_weights(files, convert.new_config(convert.read_config(tmp_path), False), tmp_path, 10**9)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}')
    with pytest.raises(ValueError, match="only .safetensors files of its folder are read"):
        convert.weight_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="as .bin files, which are pickles and not read: get safetensors"):
        convert.weight_files(tmp_path)
    for text in ("[]", "{", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is no JSON"):
            convert.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="must be the folder of an InternVL checkpoint"):
        convert.read_config(tmp_path)


# -- tokens


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_keep_their_ids(tmp_path, kind):
    write(tmp_path, kind)
    n = json.loads((tmp_path / "config.json").read_text())["llm_config"]["vocab_size"]
    text_type = convert_config.TEXT[kind]
    tokenizer = convert_tokens.read_tokenizer(tmp_path, text_type, n)
    stated = json.loads((tmp_path / "added_tokens.json").read_text())
    assert {word: tokenizer.convert_tokens_to_ids(word) for word in stated} == stated and stated["<prm>"] == n - 1
    first = [tokenizer.bos_token_id] if text_type == "llama" else []
    ids = tokenizer("Bar A<prm>\n\n<|im_end|>").input_ids
    assert ids[: len(first)] == first and ids.count(n - 1) == 1 and ids[-1] == stated["<|im_end|>"]
    assert tokenizer.decode(ids[len(first) :]) == "Bar A<prm>\n\n<|im_end|>"
    with pytest.raises(ValueError, match=f"'<prm>' is token {n - 1}, but there are {n - 1} embeddings"):
        convert_tokens.read_tokenizer(tmp_path, text_type, n - 1)
    (tmp_path / "added_tokens.json").write_text(json.dumps(stated | {"<prm>": 3}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"].pop(str(n - 1))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'<prm>' was token 3 and would become"):
        convert_tokens.read_tokenizer(tmp_path, text_type, n)


def test_a_tokenizer_that_is_missing_or_of_another_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither tokenizer.json nor vocab.json and merges.txt: fetch them"):
        convert_tokens.read_tokenizer(tmp_path, "qwen2", 100)
    with pytest.raises(FileNotFoundError, match="neither tokenizer.model nor tokenizer.json: fetch it"):
        convert_tokens.read_tokenizer(tmp_path, "llama", 100)
    write_tokens(tmp_path, KINDS[0])
    for name in ("added_tokens.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    for raw in ('{"<prm>": "x"}', '{"<prm>": []}', "[]", "{", '{"<prm>": 1e999}'):
        (tmp_path / "added_tokens.json").write_text(raw)
        with pytest.raises(ValueError, match="the added tokens are no words with their ids|tokens.json is no JSON"):
            convert_tokens.read_tokenizer(tmp_path, "qwen2", 10_000)
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the tokenizer has no <\|im_start\|>, .*none of InternVL"):
        convert_tokens.read_tokenizer(tmp_path, "qwen2", 10_000)


@needs_sentencepiece
@pytest.mark.parametrize("dummy", [False, True])
def test_a_sentencepiece_model_is_read_as_sentencepiece_reads_it(tmp_path, dummy):
    """Text with added tokens: sentencepiece's ids between them, and theirs, which are those of unused pieces."""
    import sentencepiece

    sentences = [f"{word} {other} 12 = 3 +\t{word}" for word in vocabulary() for other in ("Bar", "é", "Sum:")]
    unused = [f"[UNUSED_TOKEN_{i}]" for i in (141, 142)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=500,
        byte_fallback=True, add_dummy_prefix=dummy, remove_extra_whitespaces=False, split_digits=True,
        normalization_rule_name="identity", user_defined_symbols=[*unused, "[KEPT]"], character_coverage=0.98,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    added = {"<|im_start|>": reference.piece_to_id(unused[0]), "<|im_end|>": reference.piece_to_id(unused[1])}
    added |= {word: 500 + i for i, word in enumerate(ADDED[2:])}
    decoder = {i: {"content": word, "special": True, "normalized": False} for word, i in added.items()}
    config = {"added_tokens_decoder": decoder, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>",
              "unk_token": "<unk>", "add_bos_token": True, "tokenizer_class": "InternLM2Tokenizer"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = convert_tokens.read_tokenizer(tmp_path, "llama", 506)
    read.save_pretrained(tmp_path / "saved")
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "saved")
    parts = ["Bar A  is 3\n\n", "<|im_end|>", "\n", "<|im_start|>", "Sum: 7 + 漢é = 15 ", "<prm>"]
    for tokenizer in (read, again):
        assert {word: tokenizer.convert_tokens_to_ids(word) for word in added} == added
        for text in ["Bar A is 3", "  two spaces\t", "漢字 é", *["x[KEPT]y"] * (not dummy), *sentences[:40]]:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert ids == reference.encode(text), text
            assert tokenizer.decode(ids) == text
        ids = tokenizer("".join(parts)).input_ids
        expected = [[added[part]] if part in added else reference.encode(part) for part in parts]
        assert ids == [1, *(i for each in expected for i in each)]
    assert added["<|im_start|>"] not in read(unused[0]).input_ids


def test_without_sentencepiece_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(convert_tokens, "is_sentencepiece_available", lambda: False)
    with pytest.raises(ValueError, match="pip install sentencepiece protobuf; or put a tokenizer.json of the same"):
        convert_tokens.read_tokenizer(tmp_path, "llama", 100)


@needs_sentencepiece
def test_what_is_no_sentencepiece_model_is_refused(tmp_path):
    for raw in (b"", b"\xff" * 40, b"\x80\x04N."):
        (tmp_path / "tokenizer.model").write_bytes(raw)
        with pytest.raises(ValueError, match="is no sentencepiece model|is no plain BPE"):
            convert_tokens.read_tokenizer(tmp_path, "llama", 100)
