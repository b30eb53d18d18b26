import type { ImageInfo } from "../../../agent/runtime/port.ts";

/** An image of 100 bytes named as its ID. */
export function imageOf(id: string, change: Partial<ImageInfo> = {}): ImageInfo {
  const repoTags = [`registry.local/${id}:1`];
  return { id, repoTags, repoDigests: [], sizeBytes: 100, uid: undefined, username: "", pinned: false, ...change };
}
