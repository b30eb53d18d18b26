import { parseYAML } from "../../config/yaml.ts";
import type { Pod } from "../../kube/types.ts";
import { AgentError, hasCode } from "../../lib/errors.ts";
import { isObject } from "../../lib/json.ts";
import { podShape } from "./pod-shape.ts";
import { kindOf, shapeProblem, withoutNulls } from "./shape.ts";

/** What a manifest says, and what is odd about it. */
export interface Manifest {
  /** As written: nothing is filled in yet. Its fields have the types that they should have. */
  pods: Pod[];
  /** For people; the pods run nevertheless. */
  warnings: string[];
}

/**
 * Reads one Pod as JSON or YAML. Throws Invalid with one line that says what is wrong and where, without naming the file.
 */
export function parsePod(text: string): Manifest {
  const { value, warnings } = parseText(text);
  return { pods: [podOf(value, "")], warnings };
}

/** One pod of several: what its manifest says, or why that makes no sense. */
export interface ListedPod {
  /** `namespace/name`, as far as it can be read. */
  key: string;
  manifest: Pod | { problem: string };
}

/**
 * Reads one Pod or a PodList. Throws Invalid if it is neither; a list may hold pods that make no sense beside others.
 */
export function parsePods(text: string): { listed: ListedPod[]; warnings: string[] } {
  const { value, warnings } = parseText(text);
  if (!isObject(value) || value["kind"] !== "PodList") {
    const pod = podOf(value, "");
    return { listed: [{ key: keyOfManifest(pod), manifest: pod }], warnings };
  }
  const { apiVersion, items = [] } = value;
  if (apiVersion !== "v1") throw new AgentError("Invalid", `apiVersion must be v1, not ${shownWord(apiVersion)}`);
  if (!Array.isArray(items)) throw new AgentError("Invalid", "items: must be a list");
  // Items of a list need not say what they are.
  const listed = items.map((item: unknown, i): ListedPod => {
    const value = isObject(item) ? { ...item, apiVersion, kind: "Pod" } : item;
    return { key: keyOfManifest(value), manifest: podOrProblem(value, `items[${i}]`) };
  });
  return { listed, warnings };
}

function podOrProblem(value: unknown, path: string): Pod | { problem: string } {
  try {
    return podOf(value, path);
  } catch (err) {
    if (!hasCode(err, "Invalid")) throw err;
    return { problem: err.message };
  }
}

function keyOfManifest(value: unknown): string {
  const metadata = isObject(value) && isObject(value["metadata"]) ? value["metadata"] : {};
  const { name, namespace } = metadata;
  const part = (text: unknown) => (typeof text === "string" ? text : "");
  return `${part(namespace) || "default"}/${part(name)}`;
}

function podOf(value: unknown, path: string): Pod {
  if (!isObject(value)) throw new AgentError("Invalid", `${path === "" ? "the document" : path}: must be a Pod`);
  const { apiVersion, kind } = value;
  if (apiVersion !== "v1" || kind !== "Pod") {
    const found = `apiVersion ${shownWord(apiVersion)}, kind ${shownWord(kind)}`;
    throw new AgentError("Invalid", `must be apiVersion v1, kind Pod, not ${found}`);
  }
  const problem = shapeProblem(value, podShape, path);
  if (problem !== undefined) throw new AgentError("Invalid", problem);
  const { metadata, spec } = value;
  if (!isObject(metadata) || typeof metadata["name"] !== "string" || metadata["name"] === "") {
    throw new AgentError("Invalid", `${path === "" ? "" : `${path}.`}metadata.name: must be set`);
  }
  if (!isObject(spec) || !Array.isArray(spec["containers"])) {
    throw new AgentError("Invalid", `${path === "" ? "" : `${path}.`}spec.containers: must be a list of containers`);
  }
  return value as unknown as Pod; // its shape has just been checked
}

// Messages go where many can read them: of what a manifest holds, they show what looks like an API's word and no more.
const apiWord = /^[A-Za-z][A-Za-z0-9./-]{0,62}$/;

function shownWord(value: unknown): string {
  return typeof value === "string" && apiWord.test(value) ? `"${value}"` : kindOf(value);
}

function parseText(text: string): { value: unknown; warnings: string[] } {
  if (text.trim() === "") throw new AgentError("Invalid", "is empty");
  // JSON's parser is a hundred times faster than YAML's, which would read the same.
  if (text.trimStart().startsWith("{")) {
    try {
      return { value: withoutNulls(JSON.parse(text)), warnings: [] };
    } catch {
      // YAML's flow style begins like that, too; if it is neither, the message below says where it ends to make sense.
    }
  }
  return parseDocument(text);
}

function parseDocument(text: string): { value: unknown; warnings: string[] } {
  const documents = parseYAML(text, {
    uniqueKeys: false, // the reference's parser takes the last one
    logLevel: "error", // the parser's warnings would quote the text
  });
  const [document] = documents;
  if (document === undefined) throw new AgentError("Invalid", "is empty");
  const [error] = document.errors;
  if (error !== undefined) {
    // Its message may quote the text.
    const [at] = error.linePos ?? [];
    const where = at === undefined ? "" : ` at line ${at.line}, column ${at.col}`;
    throw new AgentError("Invalid", `is not valid YAML: ${error.code}${where}`);
  }
  let value: unknown;
  try {
    value = withoutNulls(document.toJS());
  } catch {
    const why = "it has aliases or merge keys that lead nowhere, to themselves, or to too much";
    throw new AgentError("Invalid", `is not valid YAML: ${why}`);
  }
  const { length } = documents;
  const warnings = length > 1 ? [`only the first of its ${length} documents is used: a file holds one Pod`] : [];
  return { value, warnings };
}
