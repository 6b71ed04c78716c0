"use strict";
// Arrays as they lie in the page: base64 of zlib of the bytes, all first bytes of the values first.

const BLOCK_TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array };

/** The typed array that `{type, shape, data}` holds. */
async function unpacked(block) {
  const Type = BLOCK_TYPES[block.type];
  const text = atob(block.data);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = Type.BYTES_PER_ELEMENT;
  const count = planes.length / size;
  const whole = new Uint8Array(planes.length);
  for (let byte = 0; byte < size; byte++) {
    const from = byte * count;
    for (let k = 0, to = byte; k < count; k++, to += size) whole[to] = planes[from + k];
  }
  return new Type(whole.buffer);
}
