import { AgentError, hasCode } from "../lib/errors.ts";
import { collectionPath, withQuery } from "./paths.ts";
import type { Resource } from "./port.ts";
import type { KubeObject } from "./types.ts";

export interface Page<T> {
  items: T[];
  /** True for page one, also of a list that had to begin again: forget what came before. */
  isFirst: boolean;
}

// client-go's page size.
export const pageItemsMax = 500;
// A list whose continue token expires this often is read in one piece instead, as client-go's pager does at once.
export const restartsMax = 3;

interface ListAnswer {
  metadata?: { resourceVersion?: string; continue?: string };
  items?: unknown;
}

/**
 * Reads a list in pages of {@link pageItemsMax}. An expired continue token (410) begins anew.
 * @param fetch  GETs a path and returns the parsed answer
 * @returns the list's resourceVersion
 */
export async function listPages<T extends KubeObject>(
  resource: Resource<T>,
  query: { namespace?: string; labelSelector?: string; fieldSelector?: string },
  fetch: (path: string) => Promise<ListAnswer>,
  onPage: (page: Page<T>) => void | Promise<void>,
): Promise<string> {
  const { namespace, labelSelector, fieldSelector } = query;
  const path = collectionPath(resource, namespace);
  let restarts = 0;
  let token: string | undefined;
  for (;;) {
    const limit = restarts < restartsMax ? pageItemsMax : undefined;
    let answer: ListAnswer;
    try {
      answer = await fetch(withQuery(path, { labelSelector, fieldSelector, limit, continue: token }));
    } catch (err) {
      if (token === undefined || !hasCode(err, "Gone")) throw err;
      restarts += 1;
      token = undefined;
      continue;
    }
    await onPage({ items: itemsOf(resource, answer), isFirst: token === undefined });
    token = answer.metadata?.continue;
    if (token === undefined || token === "") return answer.metadata?.resourceVersion ?? "";
  }
}

/** The items of a typed list come without kind and apiVersion; watch events have both. Fill them in, so that all agree. */
function itemsOf<T extends KubeObject>(resource: Resource<T>, answer: ListAnswer): T[] {
  const { group, version, kind, plural } = resource;
  const { items } = answer;
  if (items === null || items === undefined) return [];
  if (!Array.isArray(items)) throw new AgentError("Internal", `list ${plural}: the answer is not a list`);
  const apiVersion = group === "" ? version : `${group}/${version}`;
  for (const item of items as T[]) {
    item.apiVersion ??= apiVersion;
    item.kind ??= kind;
  }
  return items as T[];
}
