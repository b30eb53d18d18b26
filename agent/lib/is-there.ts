import { access } from "node:fs/promises";

/** True if something is at this path, links followed, that this process can reach. Never rejects. */
export async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
