"""A page to try a model in ten lines: pip install gradio, then python examples/gradio_app.py."""

import gradio

from diinn_fast import Upscaler

upscaler = Upscaler()
page = gradio.Interface(
    lambda picture, scale: (picture, upscaler(picture, scale=scale)),
    [gradio.Image(type="pil"), gradio.Slider(1, 8, 3.7, label="scale")],
    gradio.ImageSlider(type="pil", label="before and after"),
    examples=[["examples/coffee.png", 4]],
)
if __name__ == "__main__":
    page.launch()
