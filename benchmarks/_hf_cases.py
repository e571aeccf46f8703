"""Which of transformers' architectures are tried: the model types in use, as `AutoModel` builds
them, and the classes with heads that people load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from _shrink import EXCEPTIONS, merged, tiny
from _trial import Case
from torch import Tensor

TYPES = """
albert bert bert-generation big_bird bros camembert canine convbert data2vec-text deberta deberta-v2
distilbert dpr electra ernie esm eurobert flaubert fnet funnel ibert jina_embeddings_v3 layoutlm
layoutlmv3 lilt longformer luke markuplm megatron-bert mobilebert modernbert mpnet nomic_bert
nystromformer rembert roberta roberta-prelayernorm roformer splinter squeezebert tapas xlm
xlm-roberta xlm-roberta-xl xlnet xmod

apertus arcee bamba biogpt bitnet bloom codegen cohere cohere2 ctrl dbrx deepseek_v2 deepseek_v3
diffllama doge ernie4_5 exaone4 falcon falcon_h1 falcon_mamba gemma gemma2 gemma3_text glm glm4
gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe helium hunyuan_v1_dense jamba
jetmoe lfm2 llama llama4_text mamba mamba2 minimax mistral mixtral mpt nemotron olmo olmo2 olmo3
olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe
qwen3_next recurrent_gemma rwkv seed_oss smollm3 stablelm starcoder2 xglm zamba2

bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 nllb-moe
pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5

audio-spectrogram-transformer clap data2vec-audio hubert moonshine parakeet_encoder seamless_m4t
sew sew-d speech_to_text unispeech unispeech-sat wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm
whisper

beit conditional_detr convnext convnextv2 cvt d_fine dab-detr data2vec-vision deformable_detr deit
detr dinov2 dinov2_with_registers dinov3_convnext dinov3_vit donut-swin dpt focalnet glpn hiera ijepa
imagegpt levit mask2former maskformer mgp-str mobilevit mobilevitv2 oneformer poolformer pvt pvt_v2
rt_detr rt_detr_v2 sam sam2 segformer swiftformer swin swin2sr swinv2 table-transformer timesformer
videomae vit vit_mae vit_msn vitdet vivit vjepa2 yolos

aimv2 align altclip blip blip-2 bridgetower chinese_clip clip clipseg flava florence2 gemma3 git
grounding-dino groupvit idefics3 instructblip internvl kosmos-2 llava lxmert metaclip_2 owlv2 owlvit
paligemma qwen2_vl siglip siglip2 vilt visual_bert xclip
""".split()

WITH_HEADS = """
BertForMaskedLM BertForSequenceClassification BertForQuestionAnswering BertForTokenClassification
RobertaForSequenceClassification DistilBertForSequenceClassification DebertaV2ForSequenceClassification
ElectraForPreTraining ModernBertForMaskedLM MPNetForMaskedLM AlbertForMaskedLM
GPT2LMHeadModel LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Gemma2ForCausalLM
OPTForCausalLM BloomForCausalLM MixtralForCausalLM
T5ForConditionalGeneration BartForConditionalGeneration MarianMTModel PegasusForConditionalGeneration
WhisperForConditionalGeneration Wav2Vec2ForCTC HubertForSequenceClassification
ASTForAudioClassification
ViTForImageClassification DeiTForImageClassificationWithTeacher SwinForImageClassification
Swinv2ForImageClassification BeitForImageClassification BeitForSemanticSegmentation
Dinov2ForImageClassification ConvNextForImageClassification LevitForImageClassificationWithTeacher
SegformerForSemanticSegmentation UperNetForSemanticSegmentation DPTForDepthEstimation
DepthAnythingForDepthEstimation YolosForObjectDetection DetrForObjectDetection
RTDetrForObjectDetection Mask2FormerForUniversalSegmentation MaskFormerForInstanceSegmentation
BlipForImageTextRetrieval BlipForQuestionAnswering BlipForConditionalGeneration
ViltForQuestionAnswering ViltForImageAndTextRetrieval CLIPForImageClassification
CLIPTextModelWithProjection CLIPVisionModelWithProjection CLIPSegForImageSegmentation
OwlViTForObjectDetection LlavaForConditionalGeneration
""".split()


# What pela can't guess of a sample: its FLOPs are unknown then, and all else must work.
# Type → the batch of one sample for a model of this configuration.
INPUTS: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "idefics3": lambda c: words(1, c.image_token_id) | {"pixel_values": torch.zeros(1, 1, *PICTURE)},
    "instructblip": lambda c: (
        words(10, c.image_token_index)
        | {"qformer_input_ids": words()["input_ids"], "pixel_values": torch.zeros(1, 3, 56, 56)}
    ),
    "kosmos-2": lambda c: (
        words(64)
        | {
            "pixel_values": torch.zeros(1, 3, 56, 56),
            "image_embeds_position_mask": (torch.arange(80) < 64).long()[None],
        }
    ),
    "lxmert": lambda c: (
        words()
        | {
            "visual_feats": torch.zeros(1, 10, c.visual_feat_dim),
            "visual_pos": torch.zeros(1, 10, c.visual_pos_dim),
        }
    ),
    "oneformer": lambda c: {
        "pixel_values": torch.zeros(1, *PICTURE),
        "task_inputs": torch.ones(1, c.task_seq_len),
    },
    "vjepa2": lambda c: {"pixel_values_videos": torch.zeros(1, 4, *PICTURE)},
}  # fmt: skip
PICTURE = (3, 64, 64)


def words(images: int = 0, token: int = 7) -> dict[str, Tensor]:
    """A text of sixteen tokens behind the places of an image."""
    ids = torch.cat([torch.full((1, images), token), torch.zeros(1, 16, dtype=torch.long)], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def cases() -> list[Case]:
    """All of them: the types, then the classes with heads."""
    return [case(name) for name in TYPES] + [case(name) for name in WITH_HEADS]


def case(name: str) -> Case:
    """A model type or class at tiny size."""
    if name in transformers.CONFIG_MAPPING:
        return Case(
            "transformers", name, name, name, lambda: arguments(name), INPUTS.get(name)
        )
    kind = getattr(transformers, name).config_class.model_type
    return Case(
        "transformers", name, kind, kind, lambda: arguments(kind, name) | {"architectures": [name]}
    )


def arguments(kind: str, name: str = "") -> dict[str, Any]:
    """``model_args`` that make a model of this type tiny."""
    small = merged(tiny(transformers.AutoConfig.for_model(kind)), EXCEPTIONS.get(kind, {}))
    return merged(small, EXCEPTIONS.get(name, {}))
