"use strict";
// Arrays as they lie in the page: base64 of zlib of one array after another, of each all first bytes
// of its values, then all second ones and so on.

const BLOCK_TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array };

/** The arrays that `{parts: [[type, shape], …], data}` holds, as `{shape, values}`. */
async function unpacked({ parts, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  let start = 0;
  return parts.map(([type, shape]) => {
    const Type = BLOCK_TYPES[type];
    const size = Type.BYTES_PER_ELEMENT;
    const count = shape.reduce((product, length) => product * length, 1);
    const whole = new Uint8Array(count * size);
    for (let byte = 0; byte < size; byte++) {
      const from = start + byte * count;
      for (let k = 0, to = byte; k < count; k++, to += size) whole[to] = planes[from + k];
    }
    start += count * size;
    return { shape, values: new Type(whole.buffer) };
  });
}
