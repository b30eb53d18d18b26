/** Waits until something is so; fails after 3 s, with its text. */
export async function until(isSo: () => boolean): Promise<void> {
  const deadline = performance.now() + 3000;
  while (!isSo()) {
    if (performance.now() > deadline) throw new Error(`still not so: ${isSo.toString()}`);
    await new Promise((resolve) => void setTimeout(resolve, 2));
  }
}
