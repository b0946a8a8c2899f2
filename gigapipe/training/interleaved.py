"""Compiled code for large images: channels side by side, each value replaced by what a table has of it."""

from gigapipe.pyramids.area import compiled


@compiled("void(Array(uint8, 3, 'C', readonly=True), float32[:, :, ::1], float32[::1])")
def interleave(image, made, table):
    """Of an image (channel, row, column) what `table` has of its values: `made` (row, column, channel)."""
    for row in range(image.shape[1]):
        for channel in range(image.shape[0]):
            line = image[channel, row]
            for column in range(image.shape[2]):
                made[row, column, channel] = table[line[column]]
