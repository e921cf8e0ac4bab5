"""The page: fields, buttons, and what they start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from pathsynth.app.request import MAX_NUMBER
from pathsynth.app.views import render_heading
from pathsynth.diffusion.base import base_name
from pathsynth.synthesis.records import MAX_GUIDANCE_SCALE
from pathsynth.synthesis.stream import MAX_SEED

if TYPE_CHECKING:
    from pathsynth.app.drawing_service import DrawingService

# Queue length; further requests are rejected.
MAX_WAITING = 8
# A live region has to be on the page before its text changes.
ANNOUNCE_STATUS = "() => document.getElementById('status').setAttribute('aria-live', 'polite')"
# Colours that are too faint in the theme.
FAINT = ("body_text_color_subdued", "block_info_text_color", "block_title_text_color", "block_label_text_color")
# Options of whatever computes with the models.
MODELS: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "models",
    "api_visibility": "private",
    "show_progress": "hidden",
}


def build_theme() -> gr.Theme:
    """Returns Gradio's default theme with fonts of the system, as others come from another host, and with more contrast."""
    blue = {"button_primary_background_fill": "#1d5a8c", "button_primary_background_fill_hover": "#174a73"}
    return gr.themes.Default(primary_hue="blue", font="system-ui", font_mono="ui-monospace").set(
        **{key + suffix: colour for key, colour in blue.items() for suffix in ("", "_dark")},
        **dict.fromkeys(FAINT, "#57606a"),
        **dict.fromkeys([f"{key}_dark" for key in FAINT], "#9aa4af"),
    )


def build_page(service: DrawingService) -> gr.Blocks:
    """Builds the page, with a queue that serves one request at a time."""
    artifacts = service.artifacts
    with gr.Blocks(title="pathsynth: draw synthetic tissue images", analytics_enabled=False) as page:
        gr.HTML(
            render_heading(
                notice=service.notice,
                lora=artifacts.lora,
                base=base_name(artifacts.base),
                benchmark=artifacts.benchmark,
                classes=len(artifacts.dataset.label_names),
            ),
            elem_id="heading",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                with gr.Tab("Draw"):
                    sentence, options, start, stop = _add_request_form(service)
                with gr.Tab("Draw again"):
                    upload = gr.File(label="PNG file that was saved here, drawn again as soon as it is chosen", type="filepath")
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(elem_id="status")
                images = gr.HTML(elem_id="images")
        drawing = gr.on([start.click, sentence.submit], service.draw, [sentence, *options], [status, images], **MODELS)
        stop.click(None, cancels=[drawing])
        upload.upload(service.draw_again, upload, [status, images], **MODELS)
        page.load(None, js=ANNOUNCE_STATUS)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    return page


def _add_request_form(service: DrawingService) -> tuple[gr.Textbox, list[gr.components.Component], gr.Button, gr.Button]:
    """Adds the sentence, the other fields in the order of `DrawingService.draw`, and the buttons Draw and Stop."""
    artifacts = service.artifacts
    labels = list(artifacts.dataset.label_names)
    tissue = gr.Dropdown(labels, value=None, label="Tissue", info="Fills the sentence with its name.")
    sentence = gr.Textbox(
        label="Sentence", info="It has to name one tissue. The name alone is expanded to its training prompt.", max_lines=4
    )
    with gr.Row():
        number = gr.Number(4, label="Images", info=f"1 to {MAX_NUMBER}", min_width=110)
        seed = gr.Number(artifacts.seed, label="Seed", info=f"0 to {MAX_SEED}", min_width=150)
        scale = gr.Number(
            artifacts.generation.sampler.guidance_scale,
            label="Guidance scale",
            info=f"1 to {MAX_GUIDANCE_SCALE}; higher values follow the text more closely, with less variety",
            min_width=150,
            step=0.5,
        )
    rejected = gr.Checkbox(label="Show rejected images too")
    with gr.Row():
        start = gr.Button("Draw", variant="primary")
        stop = gr.Button("Stop")
    # in the browser, so that a quick click on Draw finds the sentence filled
    tissue.input(None, tissue, sentence, js="label => label ?? ''")
    return sentence, [number, seed, scale, rejected], start, stop
