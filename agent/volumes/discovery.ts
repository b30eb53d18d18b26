import type { ApiClient } from "../kube/port.ts";
import { hasCode } from "../lib/errors.ts";

// A small document, and a pod waits for it.
const discoveryTimeoutMs = 10_000;

/**
 * Asks the API server whether it has a resource.
 *
 * @param path of its group and version: `/api/v1`, `/apis/certificates.k8s.io/v1beta1`
 * @param name of the resource, with its subresource if that is meant: `serviceaccounts/token`
 * Rejects when the server cannot say.
 */
export async function isServed(
  client: Pick<ApiClient, "request">,
  path: string,
  name: string,
  signal?: AbortSignal,
): Promise<boolean> {
  const options = { timeoutMs: discoveryTimeoutMs, ...(signal === undefined ? {} : { signal }) };
  try {
    const list = await client.request<{ resources?: { name?: string }[] }>("GET", path, undefined, options);
    return list.resources?.some((resource) => resource.name === name) === true;
  } catch (err) {
    if (hasCode(err, "NotFound")) return false;
    throw err;
  }
}
