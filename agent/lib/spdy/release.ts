/**
 * Gives a chunk's memory back at once; the chunk is empty from then on. Each read of a socket allocates, and V8 lets 64 MB
 * of that pile up before it looks, which is more than the agent may have. Does nothing to chunks that share their memory
 * with others. Only for those that nobody looks at any more: their bytes were copied, or the socket has taken them.
 */
export function release({ buffer, byteLength }: Buffer): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength === byteLength) buffer.transfer(0);
}
