import { readdir } from "node:fs/promises";
import { ignoreErrno } from "./errno.ts";

/** Names in a directory; none if it is not there, or is none. Names only, never a stat: what is mounted there may hang. */
export async function namesIn(dir: string): Promise<string[]> {
  return (await readdir(dir).catch(ignoreErrno("ENOENT", "ENOTDIR"))) ?? [];
}
