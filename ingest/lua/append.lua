-- Append a batch to one shard's log: every event once, in the order given, numbered without gaps.
--
-- KEYS[1] events:{s}   KEYS[2] counters:{s}   then two per group:
--   vote    def:{s}:<topic>    seen:{s}:<topic>, to which this script adds ":<window>"
--   match   seen:{s}:<topic>   hook:{s}:<topic>, to which it adds ":<suppression id>"
-- ARGV[1] window of vote ids, s   ARGV[2] suppression of equal hook bodies, s   then per group:
--   class (vote | match)   number of items n   header without ordinal   suppression id or ""   n × (event id, body)
-- Returns one text per group, a character per item: "1" appended, "0" duplicate, "?" no such poll, nothing stored.
--
-- Atomic: an id remembered without its entry would lose a vote at the client's retry, an entry without its id would
-- count one twice; the ordinals must be the log's order; `voted` must not come after a change of the poll that it
-- forbids. Nothing can fail after the first write except the server itself.
--
-- Ids of votes are kept in one set per time window, expired as a whole. An id counts as seen in the window before
-- (so it is remembered for at least one window) and in the one after (the clock may have been set back).
-- The counters are written even when everything was a duplicate: WAIT and WAITAOF on this connection then cover the
-- earlier write that made it one.
local call, format = redis.call, string.format
local window_s, suppression_s = tonumber(ARGV[1]), ARGV[2]
local window = math.floor(tonumber(call('TIME')[1]) / window_s)
local counters = call('HMGET', KEYS[2], 'votes', 'events')
local ordinals = {vote = tonumber(counters[1] or 0), match = tonumber(counters[2] or 0)}
local before = {vote = ordinals.vote, match = ordinals.match}
local duplicates = 0
local replies = {}

-- Append the items first..last (positions of event ids in ARGV); `older` are more sets that make an id a duplicate.
local function append(class, header, first, last, seen, older)
  local ordinal, flags = ordinals[class], {}
  for i = first, last, 2 do
    local id, is_new = ARGV[i], true
    for _, key in ipairs(older) do
      is_new = is_new and call('SISMEMBER', key, id) == 0
    end
    if is_new and call('SADD', seen, id) == 1 then
      ordinal = ordinal + 1
      call('XADD', KEYS[1], '*', 'h', header .. format(' %.0f', ordinal), 'd', ARGV[i + 1])
      flags[#flags + 1] = '1'
    else
      duplicates = duplicates + 1
      flags[#flags + 1] = '0'
    end
  end
  local has_new = ordinal > ordinals[class]
  ordinals[class] = ordinal
  return table.concat(flags), has_new
end

local function append_votes(header, first, last, def, prefix)
  local poll = call('HMGET', def, 'rev', 'voted')
  if not poll[1] then
    return string.rep('?', (last - first) / 2 + 1)
  end
  local older = {}
  for _, other in ipairs({window - 1, window + 1}) do
    local key = prefix .. format(':%.0f', other)
    if call('EXISTS', key) == 1 then
      older[#older + 1] = key
    end
  end
  local seen = prefix .. format(':%.0f', window)
  local flags, has_new = append('vote', header, first, last, seen, older)
  if has_new then
    call('EXPIRE', seen, 2 * window_s + 60)
    if not poll[2] then
      call('HSET', def, 'voted', '1')
    end
  end
  return flags
end

local function append_match(header, first, last, seen, hook, suppression)
  if suppression ~= '' and not call('SET', hook .. ':' .. suppression, '1', 'NX', 'EX', suppression_s) then
    duplicates = duplicates + (last - first) / 2 + 1
    return string.rep('0', (last - first) / 2 + 1)
  end
  return (append('match', header, first, last, seen, {}))
end

local at, key = 3, 3
while at <= #ARGV do
  local class, header, suppression, first = ARGV[at], ARGV[at + 2], ARGV[at + 3], at + 4
  local last = first + 2 * (tonumber(ARGV[at + 1]) - 1)
  if class == 'vote' then
    replies[#replies + 1] = append_votes(header, first, last, KEYS[key], KEYS[key + 1])
  else
    replies[#replies + 1] = append_match(header, first, last, KEYS[key], KEYS[key + 1], suppression)
  end
  at, key = last + 2, key + 2
end
call('HINCRBY', KEYS[2], 'duplicates', format('%.0f', duplicates))
call('HINCRBY', KEYS[2], 'votes', format('%.0f', ordinals.vote - before.vote))
call('HINCRBY', KEYS[2], 'events', format('%.0f', ordinals.match - before.match))
return replies
