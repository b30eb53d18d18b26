import { open } from "node:fs/promises";
import { AgentError, messageOf } from "../lib/errors.ts";
import { checkResolvConf, type DNSConfig, parseResolvConf, resolvConfBytesMax } from "./dns.ts";

/**
 * Reads the host's resolv.conf, for each sandbox anew: DHCP clients rewrite it.
 * @param path `resolvConf` of the configuration; "" means that pods get nothing from the host
 * @returns undefined for ""
 * Rejects with an `AgentError` that names the file.
 */
export async function readResolvConf(path: string): Promise<DNSConfig | undefined> {
  if (path === "") return undefined;
  try {
    return parseResolvConf(await readStart(path, resolvConfBytesMax));
  } catch (err) {
    const code = err instanceof AgentError ? err.code : "Internal";
    throw new AgentError(code, `cannot read DNS settings from ${path}: ${messageOf(err)}`, { cause: err });
  }
}

/**
 * What makes the host's file of little use to pods, for an event CheckLimitsForResolvConf about the node.
 * @returns undefined if nothing does; never rejects
 */
export async function resolvConfProblem(path: string, clusterDomain: string): Promise<string | undefined> {
  try {
    const host = await readResolvConf(path);
    return host === undefined ? undefined : checkResolvConf(host, clusterDomain);
  } catch (err) {
    return messageOf(err);
  }
}

async function readStart(path: string, bytesMax: number): Promise<string> {
  const file = await open(path, "r");
  try {
    const chunks: Buffer[] = [];
    for await (const chunk of file.createReadStream({ end: bytesMax - 1, autoClose: false })) {
      chunks.push(chunk as Buffer);
    }
    return Buffer.concat(chunks).toString("utf8");
  } finally {
    await file.close();
  }
}
