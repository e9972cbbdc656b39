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

-- Append the items first..last (positions of event ids in ARGV) whose ids are in none of `sets`, which exist; remember
-- them in `seen`. Few calls with many members instead of many calls: a group has at most 1000 items, and Lua's stack
-- takes 8000 values. Returns the flags, and whether anything was new.
local function append(class, header, first, last, seen, sets)
  local ids, flags, new, is_seen = {}, {}, {}, {}
  for i = first, last, 2 do
    ids[#ids + 1] = ARGV[i]
  end
  for _, set in ipairs(sets) do
    for i, found in ipairs(call('SMISMEMBER', set, unpack(ids))) do
      if found == 1 then
        is_seen[ids[i]] = true
      end
    end
  end
  for i, id in ipairs(ids) do
    if is_seen[id] then
      duplicates = duplicates + 1
      flags[i] = '0'
    else
      is_seen[id] = true
      new[#new + 1] = id
      ordinals[class] = ordinals[class] + 1
      call('XADD', KEYS[1], '*', 'h', header .. format(' %.0f', ordinals[class]), 'd', ARGV[first + 2 * i - 1])
      flags[i] = '1'
    end
  end
  if #new > 0 then
    call('SADD', seen, unpack(new))
  end
  return table.concat(flags), #new > 0
end

local function append_votes(header, first, last, def, prefix)
  local poll = call('HMGET', def, 'rev', 'voted')
  if not poll[1] then
    return string.rep('?', (last - first) / 2 + 1)
  end
  local seen, sets, is_first = prefix .. format(':%.0f', window), {}, true
  for other = window - 1, window + 1 do
    local set = prefix .. format(':%.0f', other)
    if call('EXISTS', set) == 1 then
      sets[#sets + 1] = set
      is_first = is_first and other ~= window
    end
  end
  local flags, has_new = append('vote', header, first, last, seen, sets)
  if has_new then
    if is_first then -- from here until the window after this one has passed
      call('EXPIRE', seen, 2 * window_s + 60)
    end
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
  return (append('match', header, first, last, seen, {seen}))
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
for class, field in pairs({vote = 'votes', match = 'events'}) do
  if ordinals[class] > before[class] then
    call('HSET', KEYS[2], field, format('%.0f', ordinals[class]))
  end
end
call('HINCRBY', KEYS[2], 'duplicates', format('%.0f', duplicates))
return replies
