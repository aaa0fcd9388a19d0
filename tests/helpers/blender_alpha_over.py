"""Blender's compositor: lay a premultiplied EXR over a background, and write a PNG of 16 bit.

blender --background --factory-startup --python blender_alpha_over.py -- cut.exr background.png output.png
"""

import sys

import bpy

cut, background, output = sys.argv[sys.argv.index("--") + 1 :]
scene = bpy.context.scene
scene.use_nodes = True
nodes, links = scene.node_tree.nodes, scene.node_tree.links
nodes.clear()
images = []
for path in (background, cut):
    images.append(nodes.new("CompositorNodeImage"))
    images[-1].image = bpy.data.images.load(path)
over, composite = nodes.new("CompositorNodeAlphaOver"), nodes.new("CompositorNodeComposite")
for index, image in enumerate(images):
    links.new(image.outputs[0], over.inputs[1 + index])  # "Image", or "Combined" of a file with layers
links.new(over.outputs[0], composite.inputs[0])
scene.render.resolution_x, scene.render.resolution_y = images[0].image.size
scene.render.resolution_percentage = 100
scene.view_settings.view_transform = "Standard"
scene.render.image_settings.file_format = "PNG"
scene.render.image_settings.color_depth = "16"
scene.render.filepath = output
bpy.ops.render.render(write_still=True)
