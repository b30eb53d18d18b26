import { open } from "node:fs/promises";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { SecurityProfile } from "../port.ts";

// Docker's default profile is 20 KB. What is larger than this is some other file.
export const profileBytesMax = 1 << 20;

/**
 * The text of a Localhost profile, whose path is the node's; undefined for the other types. Docker takes the text, not the path.
 * Rejects with Invalid, naming the file, if it cannot be read or holds no JSON object.
 */
export async function readSeccompProfile(
  what: string,
  profile: SecurityProfile | undefined,
): Promise<string | undefined> {
  if (profile?.type !== "Localhost") return undefined;
  const path = profile.localhostRef;
  try {
    const text = await readSmall(path);
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) throw new Error("it is no JSON object");
    return text.trim(); // as it is: numbers in it may have 64 bits
  } catch (err) {
    // What the parser says of a broken file would quote it.
    const why = err instanceof SyntaxError ? "it is no JSON" : messageOf(err);
    throw new AgentError("Invalid", `${what}: seccomp profile ${path} cannot be used: ${why}`, { cause: err });
  }
}

async function readSmall(path: string): Promise<string> {
  const file = await open(path, "r");
  try {
    const { size } = await file.stat();
    if (size > profileBytesMax) throw new Error(`it has ${size} bytes, more than ${profileBytesMax}`);
    return await file.readFile("utf8");
  } finally {
    await file.close();
  }
}
