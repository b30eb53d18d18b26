import { constants } from "node:fs";
import { open } from "node:fs/promises";
import type { PodSandboxConfig } from "../port.ts";

type DNS = NonNullable<PodSandboxConfig["dns"]>;

/** The text of a resolv.conf. Pure. */
export function renderResolvConf({ servers, searches, options }: DNS): string {
  return [
    ...(searches.length === 0 ? [] : [`search ${searches.join(" ")}`]),
    ...servers.map((server) => `nameserver ${server}`),
    ...(options.length === 0 ? [] : [`options ${options.join(" ")}`]),
    "",
  ].join("\n");
}

/**
 * Writes a pod's DNS settings into the file that Docker made for its pause container; containers that join its network
 * get the same file. In place, since it is mounted already. Docker leaves a file alone that is not as it wrote it.
 */
export async function writeResolvConf(path: string, dns: DNS): Promise<void> {
  const file = await open(path, constants.O_WRONLY | constants.O_TRUNC | constants.O_NOFOLLOW);
  try {
    await file.writeFile(renderResolvConf(dns));
  } finally {
    await file.close();
  }
}
