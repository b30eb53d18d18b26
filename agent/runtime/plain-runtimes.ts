import { basename } from "node:path";

const plainRuntimes: readonly string[] = ["runc", "crun"];

/**
 * True for OCI runtimes that are known to make containers of plain processes of the node, as `Runtime.hasPlainContainers` has
 * it.
 *
 * @param binary path or name
 */
export function isPlainRuntime(binary: string): boolean {
  return plainRuntimes.includes(basename(binary));
}
