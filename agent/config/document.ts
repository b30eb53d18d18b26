import { messageOf } from "../lib/errors.ts";
import { isObject } from "../lib/json.ts";
import type { ConfigHost } from "./host.ts";
import { ConfigError, show } from "./problems.ts";
import { type Values } from "./schema.ts";
import { parseYAML } from "./yaml.ts";

/** What a configuration file must be. */
export interface DocumentType {
  apiVersion: string;
  kind: string;
}

/**
 * Reads one YAML or JSON document of the given type.
 *
 * @param warnings takes keys that come twice, of which the last one counts then; absent: they are errors
 * @returns its fields without apiVersion and kind
 * @throws ConfigError naming the file: unreadable, empty, not YAML, a key twice, several documents, another type
 */
export function readDocument(
  path: string,
  type: DocumentType,
  host: Pick<ConfigHost, "readFile">,
  warnings?: string[],
): Values {
  let text: string;
  try {
    text = host.readFile(path);
  } catch (err) {
    throw new ConfigError([`${path}: cannot be read: ${messageOf(err)}`]);
  }
  const { apiVersion, kind, ...fields } = parseDocument(text, path, warnings);
  if (apiVersion !== type.apiVersion || kind !== type.kind) {
    throw new ConfigError([
      `${path}: must be apiVersion ${type.apiVersion}, kind ${type.kind}, not ${show(apiVersion)}, ${show(kind)}`,
    ]);
  }
  return fields;
}

/**
 * Parses one YAML or JSON document as Kubernetes does.
 *
 * @param path names the file in errors
 * @param warnings as for {@link readDocument}
 * @throws ConfigError: empty, not YAML, a key twice, several documents, no object
 */
export function parseDocument(text: string, path: string, warnings?: string[]): Values {
  const documents = parseYAML(text);
  const errors = documents.flatMap((document) => document.errors);
  const firstLine = ({ message }: Error) => message.split("\n", 1)[0]?.replace(/:$/, "");
  const error = errors.find(({ code }) => warnings === undefined || code !== "DUPLICATE_KEY");
  if (error !== undefined) throw new ConfigError([`${path}: is not valid YAML: ${firstLine(error)}`]);
  warnings?.push(...errors.map((twice) => `${path}: ${firstLine(twice)}; the last one counts`));
  const [document, another] = documents;
  if (document === undefined) throw new ConfigError([`${path}: is empty`]);
  if (another !== undefined) throw new ConfigError([`${path}: must hold one document, not ${documents.length}`]);
  let value: unknown;
  try {
    value = document.toJS();
  } catch (err) {
    throw new ConfigError([`${path}: is not valid YAML: ${messageOf(err)}`]);
  }
  if (!isObject(value)) throw new ConfigError([`${path}: must be an object with fields, not ${show(value)}`]);
  return value;
}
